//! Connections over channels of a guest in memory, with sockets at the parent's end.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use parterre_vmbus_server::bus::{Bus, ConnectListener, ConnectRequest, OfferError, OfferId};
use parterre_vmbus_server::testing::{FakeChannel, FakeGuest};
use parterre_vmbus_server::{Device, Guid, OfferFlags};
use parterre_vsp_socket::{ConnectError, Sockets, address};

const SHORT: Duration = Duration::from_millis(20);

/// A bus that keeps its offers for the test.
#[derive(Default)]
struct TestBus {
    offers: Mutex<Vec<Arc<dyn Device>>>,
    rescinded: Mutex<Vec<OfferId>>,
}

impl Bus for TestBus {
    fn offer(&self, device: Arc<dyn Device>) -> Result<OfferId, OfferError> {
        let mut offers = self.offers.lock().unwrap();
        offers.push(device);
        Ok(OfferId(offers.len() as u32 - 1))
    }

    fn rescind(&self, id: OfferId) {
        self.rescinded.lock().unwrap().push(id);
    }
}

impl TestBus {
    fn device(&self, index: usize) -> Arc<dyn Device> {
        self.offers.lock().unwrap()[index].clone()
    }

    fn rescinded(&self) -> usize {
        self.rescinded.lock().unwrap().len()
    }
}

fn bus() -> (Arc<TestBus>, Arc<dyn Bus>) {
    let bus = Arc::new(TestBus::default());
    (bus.clone(), bus)
}

/// A connection that the guest made to port 5: the program's socket and the guest's channel.
fn connected(sockets: &Sockets, guest: &FakeGuest) -> (UnixStream, FakeChannel, Arc<TestBus>, Arc<dyn Bus>) {
    let (test, bus) = bus();
    let (ours, program) = UnixStream::pair().unwrap();
    sockets.listen(5, ours, b"hi\n".to_vec()).unwrap();
    let request = ConnectRequest { endpoint: address::of_port(99), service: address::of_port(5) };
    assert!(ConnectListener::connect(sockets, &bus, request));
    let mut channel = guest.open(&*test.device(0), 0).unwrap();
    channel.run().unwrap();
    let mut greeting = [0; 3];
    (&program).read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hi\n");
    program.set_nonblocking(true).unwrap();
    (program, channel, test, bus)
}

fn packet(data: &[u8]) -> Vec<u8> {
    [&1u32.to_le_bytes(), &(data.len() as u32).to_le_bytes(), data].concat()
}

/// What the guest has got, packet by packet.
fn got(channel: &mut FakeChannel) -> Vec<Vec<u8>> {
    let data = |payload: &[u8]| {
        let size = u32::from_le_bytes(payload[4..8].try_into().unwrap()) as usize;
        payload[8..8 + size].to_vec()
    };
    channel.receive_all().iter().map(|packet| data(packet.payload())).collect()
}

#[test]
fn bytes_pass_both_ways_and_the_end_too() {
    let (sockets, guest) = (Sockets::new(), FakeGuest::new());
    let (mut program, mut channel, bus, _keep) = connected(&sockets, &guest);
    program.write_all(b"question").unwrap();
    channel.post(1, &packet(b"answer"));
    channel.run().unwrap();
    assert_eq!(got(&mut channel), [b"question"]);
    let mut answer = [0; 6];
    program.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    // The program finishes, the guest goes on for a while.
    program.shutdown(Shutdown::Write).unwrap();
    channel.run().unwrap();
    assert_eq!(got(&mut channel), [b""]);
    channel.post(2, &packet(b"more"));
    channel.post(3, &packet(b""));
    assert_eq!(bus.rescinded(), 0);
    channel.run().unwrap();
    let mut rest = String::new();
    program.read_to_string(&mut rest).unwrap();
    assert_eq!((&*rest, bus.rescinded()), ("more", 1));
    drop(channel);
    drop(bus);
    drop(_keep);
    assert_eq!(sockets.connections(), 0);
}

#[test]
fn a_slow_side_loses_nothing() {
    let (sockets, guest) = (Sockets::new(), FakeGuest::new());
    let (mut program, mut channel, _bus, _keep) = connected(&sockets, &guest);
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    let (mut to_send, mut received) = (&data[..], Vec::new());
    while received.len() < data.len() {
        match program.write(to_send) {
            Ok(count) => to_send = &to_send[count..],
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        channel.run().unwrap();
        received.extend(got(&mut channel).concat());
    }
    assert!(received == data, "what arrives is what was sent");
    // The other way: the program does not read while the guest fills the ring.
    let (mut sent, mut read, mut buffer) = (0, Vec::new(), vec![0; 100_000]);
    while read.len() < 400_000 {
        if sent < 400_000 && sent - read.len() < 40_000 {
            channel.post(1, &packet(&data[sent..sent + 4000]));
            sent += 4000;
        } else if let Ok(count) = program.read(&mut buffer) {
            read.extend_from_slice(&buffer[..count]);
        }
        channel.run().unwrap();
    }
    assert!(read == data[..read.len()]);
}

#[test]
fn a_program_that_goes_ends_the_connection() {
    let (sockets, guest) = (Sockets::new(), FakeGuest::new());
    let (program, mut channel, bus, _keep) = connected(&sockets, &guest);
    drop(program);
    channel.run().unwrap();
    assert_eq!(got(&mut channel), [b""]);
    assert_eq!(bus.rescinded(), 0, "the guest may finish too");
    channel.post(1, &packet(b"anybody there?"));
    channel.run().unwrap();
    assert_eq!(bus.rescinded(), 1);
}

#[test]
fn what_is_no_packet_costs_the_connection() {
    let (sockets, guest) = (Sockets::new(), FakeGuest::new());
    for bad in [vec![0; 4], vec![9; 16], [packet(b""), packet(b"")].concat()[..12].to_vec()] {
        let (_program, mut channel, _bus, _keep) = connected(&sockets, &guest);
        channel.post(1, &bad);
        assert_eq!(channel.run().is_err(), bad.len() != 12);
    }
    let (_program, mut channel, _bus, _keep) = connected(&sockets, &guest);
    channel.post(1, &packet(b""));
    channel.post(2, &packet(b"after the end"));
    assert!(channel.run().is_err());
    let device = _bus.device(0);
    assert!(guest.open(&*device, 0).is_err(), "a connection is opened once");
}

#[test]
fn a_guest_reaches_only_who_waits() {
    let sockets = Sockets::new();
    let (test, bus) = bus();
    let ask = |service| {
        ConnectListener::connect(&sockets, &bus, ConnectRequest { endpoint: address::of_port(1), service })
    };
    assert!(!ask(address::of_port(7)));
    let (ours, gone) = UnixStream::pair().unwrap();
    sockets.listen(7, ours, Vec::new()).unwrap();
    drop(gone);
    assert!(!ask(address::of_port(7)), "one that has gone does not wait");
    let (ours, _there) = UnixStream::pair().unwrap();
    sockets.listen(7, ours, Vec::new()).unwrap();
    assert!(!ask(address::of_port(8)));
    assert!(!ask(Guid::from_u128(7)));
    assert!(ask(address::of_port(7)));
    assert!(!ask(address::of_port(7)), "one that waits is good for one connection");
    let offer = test.device(0).offer();
    assert_eq!((offer.interface, offer.instance), (address::of_port(7), address::of_port(1)));
    assert_eq!((offer.user_defined[4], offer.flags.contains(OfferFlags::TLNPI_PROVIDER_OFFER)), (0, true));
}

#[test]
fn the_parent_connects_to_a_guest_that_listens() {
    let sockets = Sockets::new();
    let (test, bus) = bus();
    let (ours, mut program) = UnixStream::pair().unwrap();
    let failed = sockets.connect(bus.clone(), 22, &ours, b"ok\n".to_vec(), SHORT);
    assert_eq!(failed, Err(ConnectError::NoAnswer { port: 22, patience: SHORT }));
    assert_eq!((test.rescinded(), test.device(0).offer().user_defined[4]), (1, 1));
    std::thread::scope(|scope| {
        let connect = scope.spawn(|| sockets.connect(bus.clone(), 22, &ours, b"ok\n".to_vec(), 1000 * SHORT));
        while test.offers.lock().unwrap().len() < 2 {
            std::thread::yield_now();
        }
        let device = test.device(1);
        assert_ne!(device.offer().instance, test.device(0).offer().instance);
        let mut channel = FakeGuest::new().open(&*device, 0).unwrap();
        assert_eq!(connect.join().unwrap(), Ok(()));
        let mut greeting = [0; 3];
        program.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"ok\n");
        channel.post(1, &packet(b"SSH-2.0"));
        channel.run().unwrap();
        let mut banner = [0; 7];
        program.read_exact(&mut banner).unwrap();
        assert_eq!(&banner, b"SSH-2.0");
    });
}

#[test]
fn there_is_a_most() {
    let sockets = Sockets::new();
    let (_test, bus) = bus();
    let mut pairs = Vec::new();
    for port in 0..64 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        sockets.listen(port, ours, Vec::new()).unwrap();
        pairs.push(theirs);
    }
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert_eq!(sockets.listen(1, ours, Vec::new()), Err(ConnectError::TooMany));
    for port in 0..64 {
        let request = ConnectRequest { endpoint: address::of_port(port), service: address::of_port(port) };
        assert!(ConnectListener::connect(&sockets, &bus, request));
    }
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert_eq!(sockets.connect(bus.clone(), 1, &ours, Vec::new(), SHORT), Err(ConnectError::TooMany));
}
