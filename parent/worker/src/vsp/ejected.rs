//! Discs that the guest has taken out of its drives itself: the management service is to know, so that the drives are empty at the
//! next start too.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parterre_api::DiskSettings;
use parterre_api::worker::EjectedDisc;
use parterre_vsp_storage::Lun;
use uuid::Uuid;

use crate::event::Events;

#[derive(Default)]
struct State {
    /// What somebody has put into the drives.
    inside: BTreeMap<Uuid, PathBuf>,
    list: Vec<EjectedDisc>,
}

/// The list of them; clones share it.
#[derive(Clone)]
pub struct Ejected {
    state: Arc<Mutex<State>>,
    events: Events,
}

impl Ejected {
    /// An empty list; the main thread is woken when it changes.
    pub fn new(events: Events) -> Ejected {
        Ejected { state: Arc::default(), events }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list now.
    pub fn list(&self) -> Vec<EjectedDisc> {
        self.state().list.clone()
    }

    /// A new drive: notes when the guest empties it.
    pub fn watch(&self, unit: &Arc<Lun>, disk: &DiskSettings) {
        if !disk.dvd {
            return;
        }
        self.change(disk, || ());
        let (ejected, drive, weak) = (self.clone(), disk.id, Arc::downgrade(unit));
        unit.tell_ejects(Box::new(move || {
            let mut state = ejected.state();
            // By now somebody may have put another disc in.
            let is_empty = weak.upgrade().is_some_and(|unit| unit.medium().is_none());
            if is_empty && let Some(file) = state.inside.remove(&drive) {
                state.list.push(EjectedDisc { drive, file });
                ejected.events.wake();
            }
        }));
    }

    /// Somebody puts a disc into a drive, or takes it out, by `act`.
    pub fn change(&self, disk: &DiskSettings, act: impl FnOnce()) {
        let mut state = self.state();
        act();
        state.list.retain(|disc| disc.drive != disk.id);
        match &disk.file {
            Some(file) => drop(state.inside.insert(disk.id, file.clone())),
            None => drop(state.inside.remove(&disk.id)),
        }
        self.events.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parterre_vsp_storage::{Identity, Kind};

    /// A drive whose guest can be made to empty it: what the unit calls then.
    fn drive(file: Option<&str>) -> DiskSettings {
        let json =
            serde_json::json!({ "id": Uuid::new_v4(), "controller": 0, "lun": 0, "dvd": true, "file": file });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_drive_that_the_guest_empties_is_listed_until_it_is_filled() {
        let ejected = Ejected::new(Events::new().unwrap());
        let disk = drive(Some("/one.iso"));
        let unit = Arc::new(Lun::new(Kind::Dvd, Identity::new(disk.id, None), None));
        ejected.watch(&unit, &disk);
        assert_eq!(ejected.list(), []);
        unit.told_of_eject();
        assert_eq!(ejected.list(), [EjectedDisc { drive: disk.id, file: "/one.iso".into() }]);
        unit.told_of_eject();
        assert_eq!(ejected.list().len(), 1);
        let filled = DiskSettings { file: Some("/two.iso".into()), ..disk.clone() };
        ejected.change(&filled, || ());
        assert_eq!(ejected.list(), []);
        unit.told_of_eject();
        assert_eq!(ejected.list(), [EjectedDisc { drive: disk.id, file: "/two.iso".into() }]);
        ejected.change(&drive(None), || ());
        assert_eq!(ejected.list().len(), 1, "another drive");
    }
}
