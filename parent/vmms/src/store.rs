//! The definitions of virtual machines in an SQLite file.
//!
//! A change is on the disk when the call returns (write-ahead log, `synchronous=FULL`), and happens wholly or not at
//! all: a power cut at any moment loses no definition and leaves no half of one.

use std::path::Path;

use parterre_api::{SwitchSettings, VmSettings};
use rusqlite::{Connection, ErrorCode, params};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::{Error, Result};

/// Version of the layout, kept in SQLite's `user_version`.
const VERSION: i64 = 2;

/// The store.
pub struct Store {
    connection: Connection,
}

impl Store {
    /// Opens the store, making it if there is none.
    pub fn open(path: &Path) -> Result<Store> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        let mut store = Store { connection };
        store.migrate()?;
        Ok(store)
    }

    fn migrate(&mut self) -> Result<()> {
        let transaction = self.connection.transaction()?;
        let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found > VERSION {
            return Err(Error::NewerStore { found, known: VERSION });
        }
        if found == 0 {
            transaction.execute_batch(
                "CREATE TABLE vm (
                    id TEXT PRIMARY KEY,
                    name TEXT NOT NULL UNIQUE,
                    settings TEXT NOT NULL
                ) STRICT",
            )?;
        }
        if found < 2 {
            transaction.execute_batch(
                "CREATE TABLE switch (
                    id TEXT PRIMARY KEY,
                    name TEXT NOT NULL UNIQUE,
                    settings TEXT NOT NULL
                ) STRICT",
            )?;
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
        Ok(transaction.commit()?)
    }

    /// Adds a definition. The name must be free.
    pub fn insert(&mut self, id: Uuid, settings: &VmSettings) -> Result<()> {
        let json = encode(id, settings)?;
        let inserted = self.connection.execute(
            "INSERT INTO vm (id, name, settings) VALUES (?1, ?2, ?3)",
            params![id.to_string(), settings.name, json],
        );
        match inserted {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(Error::NameTaken(settings.name.clone()))
            }
            other => other.map(drop).map_err(Error::from),
        }
    }

    /// Replaces a definition; says whether there was one. Its name stays.
    pub fn update(&mut self, id: Uuid, settings: &VmSettings) -> Result<bool> {
        let json = encode(id, settings)?;
        let changed = self
            .connection
            .execute("UPDATE vm SET settings = ?2 WHERE id = ?1", params![id.to_string(), json])?;
        Ok(changed > 0)
    }

    /// Adds a switch. The name must be free.
    pub fn insert_switch(&mut self, id: Uuid, settings: &SwitchSettings) -> Result<()> {
        let json = serde_json::to_string(settings)
            .map_err(|source| Error::Definition { id: id.to_string(), source })?;
        let inserted = self.connection.execute(
            "INSERT INTO switch (id, name, settings) VALUES (?1, ?2, ?3)",
            params![id.to_string(), settings.name, json],
        );
        match inserted {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(Error::SwitchNameTaken(settings.name.clone()))
            }
            other => other.map(drop).map_err(Error::from),
        }
    }

    /// Removes a switch; says whether there was one.
    pub fn remove_switch(&mut self, id: Uuid) -> Result<bool> {
        Ok(self.connection.execute("DELETE FROM switch WHERE id = ?1", params![id.to_string()])? > 0)
    }

    /// All switches, by name.
    pub fn switches(&self) -> Result<Vec<(Uuid, SwitchSettings)>> {
        self.definitions("SELECT id, settings FROM switch ORDER BY name")
    }

    /// Removes a definition; says whether there was one.
    pub fn remove(&mut self, id: Uuid) -> Result<bool> {
        Ok(self.connection.execute("DELETE FROM vm WHERE id = ?1", params![id.to_string()])? > 0)
    }

    /// All definitions, by name.
    pub fn all(&self) -> Result<Vec<(Uuid, VmSettings)>> {
        self.definitions("SELECT id, settings FROM vm ORDER BY name")
    }

    fn definitions<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<(Uuid, T)>> {
        let mut statement = self.connection.prepare(query)?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        rows.map(|row| {
            let (id, json) = row?;
            let parsed = Uuid::parse_str(&id)
                .map_err(|_| Error::Failed(format!("'{id}' is no id of a definition")))?;
            let settings = serde_json::from_str(&json).map_err(|source| Error::Definition { id, source })?;
            Ok((parsed, settings))
        })
        .collect()
    }
}

fn encode(id: Uuid, settings: &VmSettings) -> Result<String> {
    serde_json::to_string(settings).map_err(|source| Error::Definition { id: id.to_string(), source })
}
