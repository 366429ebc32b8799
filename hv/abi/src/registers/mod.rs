//! Registers of a virtual processor as the interface names and lays them out
//! (TLFS data types `HV_REGISTER_NAME`, `HV_REGISTER_VALUE`; Linux `hvgdk_mini.h`).

mod family;
mod interrupt;
mod name;
mod value;

pub use interrupt::*;
pub use name::RegisterName;
pub use value::*;
