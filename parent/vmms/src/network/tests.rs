//! Switches with ports, in a network namespace where nothing else is.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use parterre_api::{AdapterOptions, NetworkAdapter, Trunk};
use parterre_partition::tap::{self, Queue};
use vm_memory::VolatileSlice;

use super::*;

#[test]
fn names_fit_interfaces() {
    let id = Uuid::parse_str("12345678-0000-4000-8000-000000000000").unwrap();
    assert_eq!(bridge_name(id), "vsw12345678");
    assert!(bridge_name(id).len() <= tap::MAX_NAME);
    assert_eq!(bridge_mac(id)[0], 2);
    assert_eq!((queues(0), queues(2), queues(64)), (1, 2, 8));
}

/// A command as root of a network namespace.
fn in_namespace() -> Command {
    let mut command = Command::new("unshare");
    command.arg("--net");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
}

/// Runs the tests of [`alone`] as root of a namespace. It takes `unshare` (util-linux) and `ip` (iproute2), and a kernel
/// with CONFIG_BRIDGE_VLAN_FILTERING, as the lab's parent has it; `cargo lab test vm::network` goes over the same there.
#[test]
fn in_a_namespace() {
    let bridge = ["ip", "link", "add", "name", "probe", "type", "bridge", "vlan_filtering", "1"];
    let probe = in_namespace().args(bridge).output().unwrap();
    if String::from_utf8_lossy(&probe.stderr).contains("not supported") {
        eprintln!("not run: this kernel cannot filter VLANs on bridges");
        return;
    }
    let program = std::env::current_exe().unwrap();
    let output = in_namespace()
        .arg(program)
        .args(["--ignored", "--test-threads=1", "network::tests::alone"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(" 7 passed"), "{said}");
}

fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn switch(kind: SwitchKind) -> (Switches, Uuid, SwitchSettings) {
    switch_of(SwitchSettings { name: "lan".into(), kind, mtu: None })
}

fn switch_of(settings: SwitchSettings) -> (Switches, Uuid, SwitchSettings) {
    let id = Uuid::new_v4();
    let nowhere = Path::new("/nonexistent");
    let switches = Switches::new(vec![(id, settings.clone())], "/bin/false".into(), nowhere.into(), nowhere);
    (switches, id, settings)
}

fn adapter(number: u8, options: AdapterOptions) -> NetworkAdapter {
    let mac = parterre_api::MacAddress([2, 0, 0, 0, 0, number]);
    NetworkAdapter { id: Uuid::new_v4(), mac, switch: "lan".into(), options }
}

fn frame(to: u8, from: u8, text: &[u8]) -> Vec<u8> {
    let to = if to == 0xFF { [0xFF; 6] } else { [2, 0, 0, 0, 0, to] };
    [&to[..], &[2, 0, 0, 0, 0, from], &[0x88, 0xB5], text].concat()
}

fn send(port: &[Queue], frame: &[u8]) {
    port[0].send(&[0; 10], frame, &[]).unwrap();
}

/// The next frame of ours that comes up a port without a tag.
fn receive(port: &[Queue]) -> Option<Vec<u8>> {
    receive_with(port, false)
}

/// The next frame of ours that comes up a port.
fn receive_any(port: &[Queue]) -> Option<Vec<u8>> {
    receive_with(port, true)
}

fn receive_with(port: &[Queue], tags: bool) -> Option<Vec<u8>> {
    for _ in 0..50 {
        for queue in port {
            let (mut header, mut bytes) = ([0; 10], [0; 10000]);
            while let Ok(len) = queue.receive(&mut header, &[VolatileSlice::from(&mut bytes[..])]) {
                if bytes[12..14] == [0x88, 0xB5] || tags && bytes[16..18] == [0x88, 0xB5] {
                    return Some(bytes[..len].to_vec());
                }
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

/// Ignored, but run by [`in_a_namespace`].
mod alone {
    use super::*;

    #[tokio::test]
    #[ignore = "needs a namespace of its own"]
    async fn a_private_switch_joins_adapters_and_nobody_else() {
        let (switches, id, settings) = switch(SwitchKind::Private);
        let one = switches.connect(&adapter(1, AdapterOptions::default()), 2).await.unwrap().queues;
        let two = switches.connect(&adapter(2, AdapterOptions::default()), 1).await.unwrap().queues;
        assert_eq!((one.len(), two.len()), (2, 1));
        send(&one, &frame(0xFF, 1, b"hello"));
        assert_eq!(receive(&two), Some(frame(0xFF, 1, b"hello")));
        send(&two, &frame(1, 2, b"hello yourself"));
        assert_eq!(receive(&one), Some(frame(1, 2, b"hello yourself")));
        // The parent does not answer, whatever address it has there.
        let bridge = bridge_name(id);
        run(&format!("ip address add 10.9.9.1/24 dev {bridge}"));
        let parent = UdpSocket::bind("10.9.9.1:4000").unwrap();
        parent.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        send(&one, &udp_to_parent(&mac_of(&bridge)));
        assert!(parent.recv(&mut [0; 100]).is_err());
        drop((one, two));
        switches.unmake(id, &settings).await.unwrap();
        assert!(!run("ip -o link").contains("vsw"));
        switches.unmake(id, &settings).await.unwrap();
    }

    fn mac_of(bridge: &str) -> Vec<u8> {
        let text = std::fs::read_to_string(format!("/sys/class/net/{bridge}/address"));
        // Without its own /sys, iproute2 knows.
        let text = text.unwrap_or_else(|_| {
            let said = run(&format!("ip -o link show {bridge}"));
            said.split("link/ether ").nth(1).unwrap()[..17].to_owned()
        });
        text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    }

    /// UDP from 10.9.9.2 to port 4000 of 10.9.9.1.
    fn udp_to_parent(mac: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 9, 2, 10, 9, 9, 1];
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = !((sum & 0xFFFF) + (sum >> 16)) as u16;
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend([0x10, 0, 0x0F, 0xA0, 0, 12, 0, 0, b'p', b'i', b'n', b'g']);
        [mac, &[2, 0, 0, 0, 0, 1], &[8, 0], &packet].concat()
    }

    #[tokio::test]
    #[ignore = "needs a namespace of its own"]
    async fn an_internal_switch_joins_the_parent_too() {
        let (switches, id, settings) =
            switch(SwitchKind::Internal { address: Some("10.9.9.1/24".into()), dhcp: false, nat: false });
        switches.restore().await;
        assert_eq!(switches.all()[0].trouble, None);
        let parent = UdpSocket::bind("10.9.9.1:4000").unwrap();
        parent.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let one = switches.connect(&adapter(1, AdapterOptions::default()), 1).await.unwrap().queues;
        send(&one, &udp_to_parent(&mac_of(&bridge_name(id))));
        let mut bytes = [0; 100];
        assert_eq!(parent.recv(&mut bytes).unwrap(), 4);
        assert_eq!(&bytes[..4], b"ping");
        switches.unmake(id, &settings).await.unwrap();
    }

    #[tokio::test]
    #[ignore = "needs a namespace of its own"]
    async fn vlans_and_isolation_keep_adapters_apart() {
        let (switches, id, settings) = switch(SwitchKind::Private);
        let vlan = |vlan| AdapterOptions { vlan: Some(vlan), ..AdapterOptions::default() };
        let isolated = AdapterOptions { isolated: true, ..AdapterOptions::default() };
        let mut ports = Vec::new();
        for (number, options) in
            [vlan(5), vlan(5), vlan(6), isolated.clone(), isolated, AdapterOptions::default()]
                .into_iter()
                .enumerate()
        {
            ports.push(switches.connect(&adapter(number as u8 + 1, options), 1).await.unwrap().queues);
        }
        let hear = |from: usize| {
            send(&ports[from], &frame(0xFF, from as u8 + 1, b"who hears me"));
            let hears = |port: &Vec<Queue>| receive(port).is_some();
            ports
                .iter()
                .map(hears)
                .enumerate()
                .filter(|(_, heard)| *heard)
                .map(|(port, _)| port)
                .collect::<Vec<_>>()
        };
        assert_eq!(hear(0), [1], "the same VLAN");
        assert_eq!(hear(2), [0; 0], "nobody else in this VLAN");
        assert_eq!(hear(3), [5], "not the other isolated one");
        assert_eq!(hear(5), [3, 4], "isolated ones too");
        // A tag of another VLAN does not carry a frame there.
        let mut tagged = frame(0xFF, 1, b"");
        tagged.splice(12..12, [0x81, 0, 0, 6]);
        send(&ports[0], &tagged);
        assert_eq!(receive(&ports[2]), None);
        drop(ports);
        switches.unmake(id, &settings).await.unwrap();
    }

    /// A frame with the tag of a VLAN.
    fn tagged(vlan: u8, text: &[u8]) -> Vec<u8> {
        let mut frame = frame(0xFF, 1, text);
        frame.splice(12..12, [0x81, 0, 0, vlan]);
        frame
    }

    #[tokio::test]
    #[ignore = "needs a namespace of its own"]
    async fn a_trunk_carries_the_vlans_that_it_is_allowed() {
        let (switches, id, settings) = switch(SwitchKind::Private);
        let vlan = |vlan| AdapterOptions { vlan: Some(vlan), ..AdapterOptions::default() };
        let trunk = |allowed: &str, native| {
            let trunk = Some(Trunk { allowed: allowed.parse().unwrap(), native });
            AdapterOptions { trunk, ..AdapterOptions::default() }
        };
        let mut ports = Vec::new();
        let all = [
            trunk("5-7,9", Some(3)),
            vlan(3),
            vlan(5),
            vlan(8),
            vlan(9),
            AdapterOptions::default(),
            trunk("5", None),
        ];
        for (number, options) in all.into_iter().enumerate() {
            ports.push(switches.connect(&adapter(number as u8 + 1, options), 1).await.unwrap().queues);
        }
        let hear = |from: usize, frame: &[u8]| {
            send(&ports[from], frame);
            let heard = ports.iter().map(|port| receive_any(port));
            heard.enumerate().filter_map(|(port, heard)| Some((port, heard?))).collect::<Vec<_>>()
        };
        let (plain, five, nine) = (frame(0xFF, 1, b"x"), tagged(5, b"x"), tagged(9, b"x"));
        assert_eq!(hear(0, &plain), [(1, plain.clone())], "the native VLAN");
        assert_eq!(
            hear(0, &five),
            [(2, plain.clone()), (6, five.clone())],
            "by its tag, which the other trunk sees"
        );
        assert_eq!(hear(0, &nine), [(4, plain.clone())]);
        assert_eq!(hear(0, &tagged(8, b"x")), [], "not allowed");
        assert_eq!(hear(2, &plain), [(0, five.clone()), (6, five)], "with its tag");
        assert_eq!(hear(1, &plain), [(0, plain.clone())], "native: without");
        assert_eq!(hear(5, &plain), [(6, plain.clone())], "where untagged frames are");
        drop(ports);
        switches.unmake(id, &settings).await.unwrap();
    }

    #[tokio::test]
    #[ignore = "needs a namespace of its own"]
    async fn frames_are_as_long_as_the_switch_says() {
        let jumbo = SwitchSettings { name: "lan".into(), kind: SwitchKind::Private, mtu: Some(9000) };
        let (switches, id, settings) = switch_of(jumbo.clone());
        let one = switches.connect(&adapter(1, AdapterOptions::default()), 1).await.unwrap();
        let two = switches.connect(&adapter(2, AdapterOptions::default()), 1).await.unwrap();
        assert_eq!((one.port.mtu, two.port.mtu), (9000, 9000));
        let long = frame(0xFF, 1, &[7; 8900]);
        send(&one.queues, &long);
        assert_eq!(receive(&two.queues), Some(long));
        drop((one, two));
        switches.unmake(id, &settings).await.unwrap();
        // A card that carries less is not made to.
        run("ip link add name up1 type veth peer name far2");
        let external = SwitchKind::External { interface: "up1".into(), shared: false };
        let (switches, id, settings) = switch_of(SwitchSettings { kind: external.clone(), ..jumbo });
        let error = switches.make(id, &settings).await.unwrap_err();
        assert!(error.contains("ip link set up1 mtu 9000"), "{error}");
        run("ip link set up1 mtu 4000");
        let (switches, id, settings) = switch(external);
        let one = switches.connect(&adapter(1, AdapterOptions::default()), 1).await.unwrap();
        assert_eq!(one.port.mtu, 4000, "that of its card");
        drop(one);
        switches.unmake(id, &settings).await.unwrap();
        run("ip link del up1");
    }

    #[tokio::test]
    #[ignore = "needs a namespace of its own"]
    async fn an_external_switch_has_an_interface() {
        run("ip link add name up0 type veth peer name far0");
        run("ip link set far0 up");
        run("ip address add 10.7.7.2/24 dev up0");
        let external = |shared| SwitchKind::External { interface: "up0".into(), shared };
        let (switches, id, settings) = switch(external(false));
        let error = switches.make(id, &settings).await.unwrap_err();
        assert!(error.contains("10.7.7.2") && error.contains("--share"), "{error}");
        assert!(!run("ip -o link").contains("vsw"), "nothing is left");
        // Shared, with a route, which comes along and goes back.
        run("ip link set up0 up");
        run("ip route add 10.8.0.0/16 via 10.7.7.1");
        let (switches, id, settings) = switch(external(true));
        let one = switches.connect(&adapter(1, AdapterOptions::default()), 1).await.unwrap().queues;
        let bridge = bridge_name(id);
        assert!(run("ip -o -4 address").contains(&format!("{bridge}    inet 10.7.7.2/24")));
        assert!(run("ip route").contains(&format!("10.8.0.0/16 via 10.7.7.1 dev {bridge}")));
        switches.make(id, &settings).await.unwrap();
        drop(one);
        switches.unmake(id, &settings).await.unwrap();
        assert!(run("ip -o -4 address").contains("up0    inet 10.7.7.2/24"));
        assert!(run("ip route").contains("10.8.0.0/16 via 10.7.7.1 dev up0"));
        let (switches, id, settings) =
            switch(SwitchKind::External { interface: "none0".into(), shared: false });
        assert!(
            switches.make(id, &settings).await.unwrap_err().contains("there is no network interface none0")
        );
        run("ip link del up0");
    }

    #[tokio::test]
    #[ignore = "needs a namespace of its own"]
    async fn trouble_is_told_and_goes_away() {
        let (switches, id, settings) = switch(SwitchKind::Private);
        run(&format!("ip link add name {} type veth peer name far1", bridge_name(id)));
        switches.restore().await;
        assert!(switches.find("lan").unwrap().trouble.unwrap().contains("is not a bridge"));
        let adapter = adapter(1, AdapterOptions::default());
        assert!(switches.connect(&adapter, 1).await.unwrap_err().contains("switch 'lan' does not work"));
        run(&format!("ip link del {}", bridge_name(id)));
        let port = switches.connect(&adapter, 1).await.unwrap();
        assert_eq!(switches.find("lan").unwrap().trouble, None);
        assert!(switches.connect(&adapter, 1).await.is_err(), "its port is there already");
        drop(port);
        switches.unmake(id, &settings).await.unwrap();
        let mut lost = adapter;
        lost.switch = "wan".into();
        assert!(switches.connect(&lost, 1).await.unwrap_err().contains("no switch 'wan'"));
    }
}
