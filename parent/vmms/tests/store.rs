//! The store keeps what it was given, over restarts and over sudden ends.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use parterre_api::VmSettings;
use parterre_vmms::{Error, Store};
use uuid::Uuid;

/// Names the store that a child process is to fill until it is killed.
const VARIABLE: &str = "PARTERRE_STORE_TO_FILL";

fn settings(name: &str) -> VmSettings {
    VmSettings {
        name: name.into(),
        memory: 64 << 20,
        processors: 1,
        kernel: "/boot/vmlinuz".into(),
        initrd: Some("/boot/initrd".into()),
        command_line: "x".repeat(1000),
        ..VmSettings::default()
    }
}

#[test]
fn definitions_survive_and_names_are_unique() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmms.db");
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    let mut store = Store::open(&path).unwrap();
    store.insert(b, &settings("b")).unwrap();
    store.insert(a, &settings("a")).unwrap();
    assert!(
        matches!(store.insert(Uuid::new_v4(), &settings("a")), Err(Error::NameTaken(name)) if name == "a")
    );
    drop(store);
    let mut store = Store::open(&path).unwrap();
    assert_eq!(store.all().unwrap(), [(a, settings("a")), (b, settings("b"))]);
    assert!(store.remove(a).unwrap());
    assert!(!store.remove(a).unwrap());
    assert_eq!(store.all().unwrap().len(), 1);
}

#[test]
fn a_store_of_the_future_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmms.db");
    drop(Store::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Store::open(&path), Err(Error::NewerStore { found: 99, .. })));
}

/// Not a test by itself: fills a store and says each name once it is stored.
#[test]
fn fill_until_killed() {
    let Ok(path) = std::env::var(VARIABLE) else { return };
    let mut store = Store::open(path.as_ref()).unwrap();
    for number in 0.. {
        let name = format!("vm-{number}");
        store.insert(Uuid::new_v4(), &settings(&name)).unwrap();
        println!("\nstored {name}");
    }
}

#[test]
fn a_kill_in_the_middle_loses_nothing_that_was_stored() {
    for round in 0..3 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmms.db");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fill_until_killed", "--nocapture"])
            .env(VARIABLE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut stored = Vec::new();
        for line in lines {
            if let Some(name) = line.strip_prefix("stored ") {
                stored.push(name.to_owned());
            }
            if stored.len() == 10 + 7 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let found: Vec<_> = Store::open(&path).unwrap().all().unwrap();
        for name in &stored {
            let definition = found.iter().find(|(_, settings)| settings.name == *name);
            assert_eq!(definition.map(|(_, found)| found), Some(&settings(name)), "{name} was lost");
        }
        // At most the one whose word did not get out.
        assert!(found.len() <= stored.len() + 1, "{} stored, {} found", stored.len(), found.len());
    }
}
