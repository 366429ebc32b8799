//! The guest socket: requests in, a guest in memory behind the bus, answers out.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use parterre_api::guest::{GuestAnswer, GuestRequest, ShutdownRequest};
use parterre_api::{
    ErrorCode, IntegrationService, IntegrationStatus, MemoryRequest, ServiceState, VmSettings,
};
use parterre_partition::fake::FakePartition;
use parterre_partition::memory::GuestMemory;
use parterre_vmbus_server::bus::{Bus, OfferError, OfferId};
use parterre_vmbus_server::testing::{FakeChannel, FakeGuest};
use parterre_vmbus_server::{Device, Guid, Version};
use parterre_vsp_ic::Service;
use parterre_worker::guest::{Guest, serve};
use parterre_worker::vsp::Attachment;
use uuid::Uuid;

#[derive(Default)]
struct TestBus {
    offers: Mutex<Vec<Option<Arc<dyn Device>>>>,
}

impl Bus for TestBus {
    fn offer(&self, device: Arc<dyn Device>) -> Result<OfferId, OfferError> {
        let mut offers = self.offers.lock().unwrap();
        offers.push(Some(device));
        Ok(OfferId(offers.len() as u32 - 1))
    }

    fn rescind(&self, id: OfferId) {
        self.offers.lock().unwrap()[id.0 as usize] = None;
    }

    fn version(&self) -> Option<Version> {
        Some(Version::WIN10_V5_3)
    }
}

impl TestBus {
    fn device(&self, service: Service) -> Option<Arc<dyn Device>> {
        let offers = self.offers.lock().unwrap();
        offers.iter().flatten().find(|device| device.offer().instance == service.instance()).cloned()
    }
}

/// A worker's guest with its socket in a directory of its own.
struct Rig {
    directory: std::path::PathBuf,
    guest: Arc<Guest>,
    bus: Arc<TestBus>,
}

impl Rig {
    fn new(name: &str) -> Rig {
        let directory = std::env::temp_dir().join(format!("parterre-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let settings = VmSettings { name: "web".into(), ..VmSettings::default() };
        let guest = Arc::new(
            Guest::new(Uuid::nil(), &settings, Arc::new(GuestMemory::new(64 << 20).unwrap()), Arc::default())
                .unwrap(),
        );
        let bus = Arc::new(TestBus::default());
        guest.attach(bus.clone(), Arc::new(FakePartition::default()));
        let listener = UnixListener::bind(directory.join("guest.sock")).unwrap();
        serve(guest.clone(), listener).unwrap();
        Rig { directory, guest, bus }
    }

    fn ask(&self, request: &GuestRequest) -> GuestAnswer {
        ask(&self.directory, request)
    }

    fn status(&self) -> IntegrationStatus {
        match self.ask(&GuestRequest::Status) {
            GuestAnswer::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn state(&self, service: IntegrationService) -> ServiceState {
        let status = self.status();
        status.services.into_iter().find(|status| status.service == service).unwrap().state
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn ask(directory: &Path, request: &GuestRequest) -> GuestAnswer {
    let mut stream = UnixStream::connect(directory.join("guest.sock")).unwrap();
    let mut line = serde_json::to_vec(request).unwrap();
    line.push(b'\n');
    stream.write_all(&line).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

/// Opens a service's channel and takes its newest version, as Linux does.
fn open(guest: &FakeGuest, device: &dyn Device, service: Service) -> FakeChannel {
    let mut channel = guest.open(device, 0).unwrap();
    let packet = channel.receive().unwrap();
    let mut answer = packet.payload().to_vec();
    let newest = service.versions().last().unwrap();
    answer[25] = 5;
    answer[28..32].copy_from_slice(&[1, 0, 1, 0]);
    answer[36..40].copy_from_slice(&[3, 0, 0, 0]);
    answer[40..42].copy_from_slice(&newest.major.to_le_bytes());
    answer[42..44].copy_from_slice(&newest.minor.to_le_bytes());
    channel.post(0, &answer);
    channel.run().unwrap();
    channel
}

#[test]
fn services_come_and_go_and_say_how_they_are() {
    let rig = Rig::new("services");
    assert_eq!(rig.status().vmbus.as_deref(), Some("5.3"));
    assert_eq!(rig.state(IntegrationService::FileCopy), ServiceState::Disabled);
    assert_eq!(rig.state(IntegrationService::Heartbeat), ServiceState::NotSupported { reason: None });
    let device = rig.bus.device(Service::Heartbeat).unwrap();
    let memory = FakeGuest::new();
    let channel = open(&memory, &*device, Service::Heartbeat);
    let ServiceState::Running { version, detail, update, .. } = rig.state(IntegrationService::Heartbeat)
    else {
        panic!("it does not run");
    };
    assert_eq!((&*version, detail.as_deref(), update), ("3.0", Some("no answer yet"), None));
    drop(channel);
    let enable = |service, enabled| rig.ask(&GuestRequest::Enable { service, enabled });
    assert_eq!(enable(IntegrationService::Heartbeat, false), GuestAnswer::Done);
    assert_eq!(enable(IntegrationService::FileCopy, true), GuestAnswer::Done);
    assert!(rig.bus.device(Service::Heartbeat).is_none());
    assert!(rig.bus.device(Service::FileCopy).is_some());
    assert_eq!(rig.state(IntegrationService::Heartbeat), ServiceState::Disabled);
    // A new bus is offered what is switched on now.
    rig.guest.detach();
    assert_eq!(rig.status().vmbus, None);
    let bus = Arc::new(TestBus::default());
    rig.guest.attach(bus.clone(), Arc::new(FakePartition::default()));
    assert!(bus.device(Service::Heartbeat).is_none() && bus.device(Service::FileCopy).is_some());
}

#[test]
fn keys_are_pressed_when_there_is_a_keyboard() {
    let rig = Rig::new("keys");
    let type_text = |text: &str| rig.ask(&GuestRequest::Type { text: text.into() });
    assert!(matches!(type_text("x"), GuestAnswer::Failed { code: ErrorCode::Conflict, .. }));
    let keyboard = {
        let offers = rig.bus.offers.lock().unwrap();
        let named = |device: &&Arc<dyn Device>| device.offer().interface.to_string().starts_with("f912ad6d");
        offers.iter().flatten().find(named).cloned().unwrap()
    };
    let memory = FakeGuest::new();
    let mut channel = memory.open(&*keyboard, 0).unwrap();
    channel.post(1, &[1, 0, 0, 0, 0, 0, 1, 0]);
    channel.run().unwrap();
    assert_eq!(channel.receive_all().len(), 1);
    assert_eq!(type_text("ab"), GuestAnswer::Done);
    let chords = vec!["ctrl-alt-del".into(), "enter".into()];
    assert_eq!(rig.ask(&GuestRequest::Press { chords }), GuestAnswer::Done);
    channel.run().unwrap();
    assert_eq!(channel.receive_all().len(), 12);
    assert!(matches!(type_text("é"), GuestAnswer::Failed { code: ErrorCode::BadRequest, .. }));
}

#[test]
fn orders_wait_for_the_guest_and_nobody_else_does() {
    let rig = Rig::new("orders");
    let shutdown = GuestRequest::Shutdown(ShutdownRequest::default());
    let GuestAnswer::Failed { code, message } = rig.ask(&shutdown) else { panic!("nobody is there") };
    assert!(code == ErrorCode::Conflict && message.contains("'Shutdown'"), "{message}");
    let device = rig.bus.device(Service::Shutdown).unwrap();
    let memory = FakeGuest::new();
    let mut channel = open(&memory, &*device, Service::Shutdown);
    let directory = rig.directory.clone();
    let asking = std::thread::spawn(move || ask(&directory, &shutdown));
    let request = loop {
        channel.run().unwrap();
        if let Some(packet) = channel.receive() {
            break packet.payload().to_vec();
        }
        assert!(!asking.is_finished());
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(matches!(rig.state(IntegrationService::Shutdown), ServiceState::Running { .. }));
    let mut answer = request;
    answer[25] = 5;
    channel.post(0, &answer);
    channel.run().unwrap();
    assert_eq!(asking.join().unwrap(), GuestAnswer::Done);
}

#[test]
fn items_are_kept_for_a_guest_that_is_not_ready() {
    let rig = Rig::new("items");
    let set =
        |key: &str, value: &str| rig.ask(&GuestRequest::SetItem { key: key.into(), value: value.into() });
    assert_eq!(set("role", "front"), GuestAnswer::Done);
    assert!(matches!(set("", "x"), GuestAnswer::Failed { code: ErrorCode::BadRequest, .. }));
    let device = rig.bus.device(Service::KeyValue).unwrap();
    let memory = FakeGuest::new();
    let mut channel = open(&memory, &*device, Service::KeyValue);
    let mut keys = Vec::new();
    while let Some(packet) = channel.receive() {
        let mut answer = packet.payload().to_vec();
        let text = &answer[28 + 16..28 + 16 + 512];
        let units = text.chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        keys.push(String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>()));
        answer[25] = 5;
        channel.post(0, &answer);
        channel.run().unwrap();
    }
    assert!(keys.contains(&"VirtualMachineName".to_owned()), "{keys:?}");
    assert_eq!(keys.last().map(String::as_str), Some("role"));
}

/// Message of dynamic memory.
fn dynamic(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(body.len() as u16 + 8).to_le_bytes(), &[0; 4], body].concat()
}

fn refusal(answer: GuestAnswer) -> (ErrorCode, String) {
    match answer {
        GuestAnswer::Failed { code, message } => (code, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_is_asked_for_when_the_guest_can_give_it() {
    let rig = Rig::new("memory");
    let bring = |bytes, seconds| rig.ask(&GuestRequest::SetMemory(MemoryRequest { bytes, seconds }));
    let (code, message) = refusal(bring(48 << 20, 1));
    assert!(code == ErrorCode::Conflict && message.contains("hv_balloon"), "{message}");
    for (bytes, word) in [(66 << 20, "started with 64 MiB"), (16 << 20, "at least 32M"), (1, "2 MiB")] {
        let (code, message) = refusal(bring(bytes, 1));
        assert!(code == ErrorCode::BadRequest && message.contains(word), "{message}");
    }
    let dynamic_memory = Guid::from_u128(0x525074dc_8985_46e2_8057_a307dc18a502);
    let device = {
        let offers = rig.bus.offers.lock().unwrap();
        offers.iter().flatten().find(|device| device.offer().interface == dynamic_memory).cloned().unwrap()
    };
    let mut channel = FakeGuest::new().open(&*device, 0).unwrap();
    channel.post(0, &dynamic(1, &[0, 0, 2, 0, 0, 0, 0, 0]));
    channel.post(0, &dynamic(3, &[1; 24]));
    channel.run().unwrap();
    assert!(matches!(bring(62 << 20, 0), GuestAnswer::Memory(status) if !status.settled));
    // The guest gives the second 2 MiB up.
    channel.run().unwrap();
    let range = (512u64 | 512 << 40).to_le_bytes();
    channel.post(0, &dynamic(7, &[&[0, 0, 0, 0, 2, 0, 0, 0][..], &range].concat()));
    channel.run().unwrap();
    match bring(62 << 20, 1) {
        GuestAnswer::Memory(status) => {
            assert_eq!((status.assigned, status.startup, status.settled), (62 << 20, 64 << 20, true));
        }
        other => panic!("{other:?}"),
    }
}
