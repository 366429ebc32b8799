//! Data exchange (KVP): keys and values in pools, and the addresses of network adapters.
//!
//! | pool | written by | holds |
//! |---|---|---|
//! | External | the parent | items for the guest |
//! | Guest | the guest | items for the parent |
//! | Auto | the guest's operating system | what it is: name, version, addresses |
//! | AutoExternal | the parent | who it is: names of the machine and of its host |
//! | AutoInternal | the guest's own | |
//!
//! There is one request at a time. To read a pool, items are asked for by number until the guest says that there are no
//! more. Single items are not asked for by key: Linux answers that request with an empty value.
//!
//! The Auto pool is read soon after the start and then every [`REFRESH`], so what it says can be shown without waiting.

mod orders;
pub mod wire;

use std::collections::VecDeque;
use std::time::Duration;

use orders::{Order, Step};

use crate::reply::{Failure, Reply};
use crate::service::Service;
use crate::session::{Outgoing, Protocol};
use crate::wire::{Status, Version};

/// How long the guest's daemon has for one item; the guest's driver gives up after 30 seconds.
pub const PATIENCE: Duration = Duration::from_secs(35);
/// How often the Auto pool is read.
pub const REFRESH: Duration = Duration::from_secs(60);
/// When it is read first.
const FIRST_REFRESH: Duration = Duration::from_secs(1);
/// Most items that are read of a pool.
pub const MAX_ITEMS: usize = 1024;
/// Most orders that may wait.
const MAX_ORDERS: usize = 64;

/// Where items are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Pool {
    /// From the parent to the guest.
    External = 0,
    /// From the guest to the parent.
    Guest = 1,
    /// What the guest's operating system says of itself.
    Auto = 2,
    /// What the parent says of the machine.
    AutoExternal = 3,
    /// The guest's own.
    AutoInternal = 4,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// At most 255 characters.
    pub key: String,
    /// At most 1023 characters.
    pub value: String,
}

/// The addresses of a network adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Whether they come from DHCP.
    pub dhcp: bool,
    /// Addresses.
    pub addresses: Vec<String>,
    /// Their subnets, in the same order.
    pub subnets: Vec<String>,
    /// Gateways.
    pub gateways: Vec<String>,
    /// Name servers.
    pub dns: Vec<String>,
}

impl Addresses {
    /// Which families the addresses are of, as the guest is told: bit 0 for version 4, bit 1 for version 6.
    fn family(&self) -> u8 {
        let bit = |address: &String| if address.contains(':') { 2 } else { 1 };
        self.addresses.iter().map(bit).fold(0, |all, bit| all | bit)
    }
}

/// Data exchange with one guest.
#[derive(Debug, Default)]
pub struct KeyValue {
    waiting: VecDeque<Order>,
    current: Option<Order>,
    /// Written to AutoExternal at each start.
    facts: Vec<Item>,
    /// Written to External at each start.
    items: Vec<Item>,
    guest: Vec<Item>,
    refresh: Option<Duration>,
}

impl KeyValue {
    /// A service that tells each guest these facts about its machine and these items.
    pub fn new(facts: Vec<Item>, items: Vec<Item>) -> KeyValue {
        KeyValue { facts, items, ..KeyValue::default() }
    }

    /// What the guest's operating system said of itself last.
    pub fn guest_items(&self) -> &[Item] {
        &self.guest
    }

    /// One of [`KeyValue::guest_items`].
    pub fn guest_item(&self, key: &str) -> Option<&str> {
        self.guest.iter().find(|item| item.key == key).map(|item| &*item.value)
    }

    /// Gives an item of the External pool another value, for this and each later start of the guest's service. Whoever gave
    /// the order need not know whether it runs.
    pub fn keep(&mut self, key: &str, value: Option<&str>) {
        self.items.retain(|item| item.key != key);
        self.items.extend(value.map(|value| Item { key: key.into(), value: value.into() }));
    }

    /// Reads a pool.
    pub fn read(&mut self, pool: Pool, reply: Reply<Vec<Item>>) {
        self.order(Order::Read { pool, items: Vec::new(), reply });
    }

    /// Sets an item.
    pub fn set(&mut self, pool: Pool, item: Item, reply: Reply<()>) {
        match wire::set(pool, &item) {
            Some(body) => self.order(Order::Write { body, reply }),
            None => reply.send(Err(Failure::Invalid(format!(
                "the item '{}' is too long for a guest: a key has 1 to 255 characters, a value at most 1023",
                item.key.escape_default()
            )))),
        }
    }

    /// Deletes an item.
    pub fn delete(&mut self, pool: Pool, key: &str, reply: Reply<()>) {
        match wire::delete(pool, key) {
            Some(body) => self.order(Order::Write { body, reply }),
            None => reply.send(Err(Failure::Invalid("a key has 1 to 255 characters".into()))),
        }
    }

    /// Asks for the addresses of the adapter with this MAC address (`00:15:5D:...`).
    pub fn get_addresses(&mut self, adapter: &str, reply: Reply<Addresses>) {
        match wire::get_addresses(adapter) {
            Some(body) => self.order(Order::Addresses { body, reply }),
            None => reply.send(Err(Failure::Invalid("that is not the name of an adapter".into()))),
        }
    }

    /// Sets the addresses of the adapter with this identity (`{...}`).
    pub fn set_addresses(&mut self, adapter: &str, addresses: &Addresses, reply: Reply<()>) {
        match wire::set_addresses(adapter, addresses) {
            Some(body) => self.order(Order::Write { body, reply }),
            None => reply.send(Err(Failure::Invalid("there are more addresses than a guest takes".into()))),
        }
    }

    fn order(&mut self, order: Order) {
        if self.waiting.len() < MAX_ORDERS {
            self.waiting.push_back(order);
        } else {
            order.fail(Failure::Conflict("too many requests wait for the guest's answer already"));
        }
    }

    /// What the guest shall know from the start.
    fn introduce(&mut self) {
        let facts = self.facts.iter().map(|item| (Pool::AutoExternal, item));
        let items = self.items.iter().map(|item| (Pool::External, item));
        let bodies = facts.chain(items).filter_map(|(pool, item)| wire::set(pool, item));
        self.waiting = bodies.map(|body| Order::Write { body, reply: Reply::nobody() }).collect();
    }
}

impl Protocol for KeyValue {
    const SERVICE: Service = Service::KeyValue;

    fn start(&mut self, now: Duration, _version: Version) {
        self.introduce();
        self.refresh = Some(now + FIRST_REFRESH);
    }

    fn next(&mut self, now: Duration) -> Option<Outgoing> {
        if self.current.is_none() {
            self.current = self.waiting.pop_front();
        }
        if self.current.is_none() && self.refresh.is_some_and(|due| due <= now) {
            self.refresh = Some(now + REFRESH);
            self.current = Some(Order::Refresh { items: Vec::new() });
        }
        let body = self.current.as_ref()?.body();
        Some(Outgoing { body, patience: PATIENCE })
    }

    fn deadline(&self) -> Option<Duration> {
        let busy = self.current.is_some() || !self.waiting.is_empty();
        if busy { Some(Duration::ZERO) } else { self.refresh }
    }

    fn answered(&mut self, _now: Duration, status: Status, body: &[u8]) {
        let Some(order) = self.current.take() else { return };
        match order.answered(status, body) {
            Step::More(order) => self.current = Some(order),
            Step::Guest(items) => self.guest = items,
            Step::Done => {}
        }
    }

    fn unanswered(&mut self, _now: Duration) {
        if let Some(order) = self.current.take() {
            order.fail(Failure::NoAnswer { service: Service::KeyValue, patience: PATIENCE });
        }
    }

    fn stop(&mut self) {
        // Whoever waits is told by the replies themselves.
        let (facts, items) = (std::mem::take(&mut self.facts), std::mem::take(&mut self.items));
        *self = KeyValue::new(facts, items);
    }
}
