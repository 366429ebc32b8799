//! Errors of the service, each with the kind that the REST interface tells.

use parterre_api::{ErrorBody, ErrorCode, MacAddress};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// No such virtual machine.
    #[error("there is no virtual machine '{0}'; `parterre vm list` shows those that exist")]
    NotFound(String),
    /// No such switch.
    #[error("there is no switch '{0}'; `parterre switch list` shows those that exist")]
    NoSwitch(String),
    /// No such adapter.
    #[error(
        "virtual machine '{vm}' has no network adapter {mac}; `parterre vm network list {vm}` shows those that it has"
    )]
    NoAdapter {
        /// The virtual machine.
        vm: String,
        /// The address asked for.
        mac: MacAddress,
    },
    /// The name is a switch's already.
    #[error("there is already a switch '{0}'; choose another name or delete it first")]
    SwitchNameTaken(String),
    /// The name is taken.
    #[error("there is already a virtual machine '{0}'; choose another name or delete it first")]
    NameTaken(String),
    /// The state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
    /// It did not happen in time.
    #[error("{0}")]
    Timeout(String),
    /// The store.
    #[error("the store of definitions cannot be used: {0}")]
    Store(#[from] rusqlite::Error),
    /// A definition in the store that this version cannot read.
    #[error("the definition of virtual machine {id} cannot be read: {source}")]
    Definition {
        /// Its id.
        id: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The store was written by a newer version.
    #[error("the store has version {found}, this program reads up to {known}; use a newer vmms")]
    NewerStore {
        /// Version in the file.
        found: i64,
        /// Version of this program.
        known: i64,
    },
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The kind, as the REST interface tells it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Error::BadRequest(_) => ErrorCode::BadRequest,
            Error::NotFound(_) | Error::NoSwitch(_) | Error::NoAdapter { .. } => ErrorCode::NotFound,
            Error::NameTaken(_) | Error::SwitchNameTaken(_) | Error::Conflict(_) => ErrorCode::Conflict,
            Error::Timeout(_) => ErrorCode::Timeout,
            _ => ErrorCode::Failed,
        }
    }

    /// What is sent.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { code: self.code(), message: self.to_string() }
    }
}
