//! Carrying requests out.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use parterre_api::ErrorCode;
use parterre_api::guest::{
    AdapterAddresses, GuestAnswer, GuestRequest, ItemPool, ShutdownAction, ShutdownRequest,
};
use parterre_vsp_ic::kvp::{Addresses, Item, Pool};
use parterre_vsp_ic::shutdown::Action;
use parterre_vsp_ic::vss::Thawed;
use parterre_vsp_ic::{Component, Failure, Protocol, Reply};
use parterre_vsp_input::State;
use parterre_vsp_input::keys::{self, Stroke};
use parterre_vsp_socket::ConnectError;

use super::server::{answer_line, send};
use super::{Guest, copy};

/// Longest time to wait for a program that listens in the guest.
const MAX_CONNECT: u32 = 600;

/// Gives a service an order and waits for the outcome. Every order ends: by an answer, a time-out, or the channel's end.
pub(super) fn ask<P: Protocol, T: Send + 'static>(
    component: &Component<P>,
    order: impl FnOnce(&mut P, Reply<T>),
) -> Result<T, Failure> {
    let (sender, outcome) = mpsc::sync_channel(1);
    component.with(|session, _| {
        // Nobody waits any more when sending fails.
        let reply = Reply::new(move |outcome| drop(sender.send(outcome)));
        session.order().map(|protocol| order(protocol, reply))
    })?;
    outcome.recv().unwrap_or(Err(Failure::Closed))
}

pub(super) fn failed(failure: &Failure) -> GuestAnswer {
    let code = match failure {
        Failure::Unavailable(_) | Failure::Conflict(_) => ErrorCode::Conflict,
        Failure::NoAnswer { .. } => ErrorCode::Timeout,
        Failure::Invalid(_) => ErrorCode::BadRequest,
        Failure::Refused(_) | Failure::Malformed(_) | Failure::Closed => ErrorCode::Failed,
    };
    GuestAnswer::Failed { code, message: failure.to_string() }
}

fn done(outcome: Result<(), Failure>) -> GuestAnswer {
    outcome.map_or_else(|failure| failed(&failure), |()| GuestAnswer::Done)
}

fn pool(pool: ItemPool) -> Pool {
    match pool {
        ItemPool::External => Pool::External,
        ItemPool::Guest => Pool::Guest,
        ItemPool::Auto => Pool::Auto,
        ItemPool::AutoExternal => Pool::AutoExternal,
        ItemPool::AutoInternal => Pool::AutoInternal,
    }
}

impl Guest {
    /// Carries a request out and answers it on the stream, which some requests go on using.
    pub(super) fn carry_out(&self, request: GuestRequest, stream: UnixStream) {
        let answer = match request {
            GuestRequest::Screenshot => {
                let (answer, file) = self.video.screenshot();
                send(&stream, &answer);
                // Who has gone need not have it.
                let _ = (&stream).write_all(&file);
                return;
            }
            GuestRequest::CopyFile(target) => copy::copy(&self.copy, target, &stream),
            GuestRequest::Connect { port, seconds } => return self.connect_to(port, seconds, &stream),
            GuestRequest::Listen { port } => return self.listen_on(port, stream),
            other => self.answer(other),
        };
        send(&stream, &answer);
    }

    /// Requests that are one answer.
    fn answer(&self, request: GuestRequest) -> GuestAnswer {
        match request {
            GuestRequest::Enable { service, enabled } => {
                self.enable(service, enabled);
                GuestAnswer::Done
            }
            GuestRequest::Shutdown(request) => self.shut_down(&request),
            GuestRequest::ReadItems { pool: which } => {
                match ask(&self.items, |items, reply| items.read(pool(which), reply)) {
                    Ok(items) => GuestAnswer::Items {
                        items: items.into_iter().map(|item| (item.key, item.value)).collect(),
                    },
                    Err(failure) => failed(&failure),
                }
            }
            GuestRequest::SetItem { key, value } => self.set_item(key, value),
            GuestRequest::DeleteItem { key } => self.delete_item(&key),
            GuestRequest::GetAddresses { adapter } => {
                // Linux's daemon compares it with what it has made capitals of.
                let adapter = adapter.to_ascii_uppercase();
                match ask(&self.items, |items, reply| items.get_addresses(&adapter, reply)) {
                    Ok(found) => GuestAnswer::Addresses(told(found)),
                    Err(failure) => failed(&failure),
                }
            }
            GuestRequest::SetAddresses { adapter, addresses } => {
                let addresses = asked(addresses);
                done(ask(&self.items, |items, reply| items.set_addresses(&adapter, &addresses, reply)))
            }
            GuestRequest::Freeze { seconds } => {
                let limit = Duration::from_secs(seconds.into());
                done(ask(&self.backup, |backup, reply| backup.freeze(limit, reply)))
            }
            GuestRequest::Thaw => match ask(&self.backup, |backup, reply| backup.thaw(reply)) {
                Ok(thawed) => GuestAnswer::Thawed { was_frozen: thawed == Thawed::WasFrozen },
                Err(failure) => failed(&failure),
            },
            GuestRequest::Type { text } => match keys::text(&text) {
                Ok(strokes) => self.press(&strokes),
                Err(character) => wrong_keys(format!("no key writes '{}'", character.escape_default())),
            },
            GuestRequest::Press { chords } => {
                match chords.iter().map(|chord| keys::chord(chord)).collect::<Result<Vec<_>, _>>() {
                    Ok(strokes) => self.press(&strokes.concat()),
                    Err(message) => wrong_keys(message),
                }
            }
            GuestRequest::Memory => GuestAnswer::Memory(self.memory.status()),
            GuestRequest::SetMemory(request) => self.memory.bring(request),
            GuestRequest::SyncTime => {
                self.time_went_on();
                GuestAnswer::Done
            }
            // The others were taken by `carry_out`.
            _ => GuestAnswer::Status(self.status()),
        }
    }

    fn press(&self, strokes: &[Stroke]) -> GuestAnswer {
        if self.keyboard.press(strokes) {
            return GuestAnswer::Done;
        }
        let message = match self.keyboard.state() {
            State::Ready => "the guest has not taken what was typed before, or the text is too long",
            _ => "the guest does not use its keyboard (its driver is not loaded)",
        };
        GuestAnswer::Failed { code: ErrorCode::Conflict, message: message.into() }
    }

    fn shut_down(&self, request: &ShutdownRequest) -> GuestAnswer {
        let action = match request.action {
            ShutdownAction::PowerOff => Action::PowerOff,
            ShutdownAction::Restart => Action::Restart,
            ShutdownAction::Hibernate => Action::Hibernate,
        };
        done(ask(&self.shutdown, |shutdown, reply| {
            shutdown.request(action, request.force, &request.message, reply);
        }))
    }

    /// A guest whose service does not run gets the item when it does.
    fn set_item(&self, key: String, value: String) -> GuestAnswer {
        if let Err(message) = parterre_api::check_item(&key, &value) {
            return GuestAnswer::Failed { code: ErrorCode::BadRequest, message };
        }
        self.items.with(|session, _| session.protocol_mut().keep(&key, Some(&value)));
        let item = Item { key, value };
        later(ask(&self.items, |items, reply| items.set(Pool::External, item, reply)))
    }

    fn delete_item(&self, key: &str) -> GuestAnswer {
        self.items.with(|session, _| session.protocol_mut().keep(key, None));
        later(ask(&self.items, |items, reply| items.delete(Pool::External, key, reply)))
    }

    fn connect_to(&self, port: u32, seconds: u32, stream: &UnixStream) {
        let Some(bus) = self.bus() else {
            return send(stream, &no_connection("the virtual machine is being reset; try again".into()));
        };
        let patience = Duration::from_secs(seconds.min(MAX_CONNECT).into());
        let greeting = answer_line(&GuestAnswer::Connected);
        if let Err(error) = self.sockets.connect(bus, port, stream, greeting, patience) {
            // The attempt has made the socket non-blocking.
            let _ = stream.set_nonblocking(false);
            let code = match error {
                ConnectError::NoAnswer { .. } => ErrorCode::Timeout,
                _ => ErrorCode::Failed,
            };
            send(stream, &GuestAnswer::Failed { code, message: error.to_string() });
        }
    }

    fn listen_on(&self, port: u32, stream: UnixStream) {
        let greeting = answer_line(&GuestAnswer::Connected);
        let Ok(again) = stream.try_clone() else { return };
        if let Err(error) = self.sockets.listen(port, stream, greeting) {
            send(&again, &no_connection(error.to_string()));
        }
    }
}

fn wrong_keys(message: String) -> GuestAnswer {
    GuestAnswer::Failed { code: ErrorCode::BadRequest, message }
}

fn no_connection(message: String) -> GuestAnswer {
    GuestAnswer::Failed { code: ErrorCode::Failed, message }
}

fn later(outcome: Result<(), Failure>) -> GuestAnswer {
    match outcome {
        Err(Failure::Unavailable(_)) => GuestAnswer::Done,
        other => done(other),
    }
}

fn told(found: Addresses) -> AdapterAddresses {
    let Addresses { dhcp, addresses, subnets, gateways, dns } = found;
    AdapterAddresses { dhcp, addresses, subnets, gateways, dns }
}

fn asked(wanted: AdapterAddresses) -> Addresses {
    let AdapterAddresses { dhcp, addresses, subnets, gateways, dns } = wanted;
    Addresses { dhcp, addresses, subnets, gateways, dns }
}
