//! Status codes of hypercalls (TLFS chapter "Hypercall Interface", `HV_STATUS`; Linux `hvgdk_mini.h`).
//!
//! A status says what the caller did wrong, or which resource it has to give; it never says anything about
//! the hypervisor's own failures, which are not visible in this interface.

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The 16-bit status in the low bits of a hypercall's result (`HV_STATUS`).
#[open_enum]
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub enum HvStatus {
    /// The operation succeeded.
    SUCCESS = 0x0000,
    /// The hypervisor does not know the call code.
    INVALID_HYPERCALL_CODE = 0x0002,
    /// The control word is malformed: reserved bits, rep counts, or fast where it is not allowed.
    INVALID_HYPERCALL_INPUT = 0x0003,
    /// A parameter page is not 8-byte aligned, or crosses a page.
    INVALID_ALIGNMENT = 0x0004,
    /// A parameter is out of range or inconsistent.
    INVALID_PARAMETER = 0x0005,
    /// The caller lacks the privilege for this object.
    ACCESS_DENIED = 0x0006,
    /// The partition is not in a state that allows the operation.
    INVALID_PARTITION_STATE = 0x0007,
    /// The operation is not allowed in the present state.
    OPERATION_DENIED = 0x0008,
    /// The property code is unknown.
    UNKNOWN_PROPERTY = 0x0009,
    /// The property's value is out of its range.
    PROPERTY_VALUE_OUT_OF_RANGE = 0x000A,
    /// The partition's memory pool is exhausted: deposit pages and try again.
    INSUFFICIENT_MEMORY = 0x000B,
    /// The partition hierarchy is too deep.
    PARTITION_TOO_DEEP = 0x000C,
    /// No partition has this id, or the caller may not name it.
    INVALID_PARTITION_ID = 0x000D,
    /// The partition has no VP with this index.
    INVALID_VP_INDEX = 0x000E,
    /// The object was not found.
    NOT_FOUND = 0x0010,
    /// The port id is invalid or in use.
    INVALID_PORT_ID = 0x0011,
    /// The connection id is invalid or in use.
    INVALID_CONNECTION_ID = 0x0012,
    /// No message buffer is free.
    INSUFFICIENT_BUFFERS = 0x0013,
    /// The previous virtual interrupt has not been acknowledged.
    NOT_ACKNOWLEDGED = 0x0014,
    /// The VP is not in a state that allows the operation (for example not suspended).
    INVALID_VP_STATE = 0x0015,
    /// The previous virtual interrupt has been acknowledged.
    ACKNOWLEDGED = 0x0016,
    /// The saved state given for restore is invalid.
    INVALID_SAVE_RESTORE_STATE = 0x0017,
    /// The SynIC, its message page or its event flags page is disabled.
    INVALID_SYNIC_STATE = 0x0018,
    /// The object is still in use.
    OBJECT_IN_USE = 0x0019,
    /// The proximity domain is invalid.
    INVALID_PROXIMITY_DOMAIN_INFO = 0x001A,
    /// No data is available.
    NO_DATA = 0x001B,
    /// The object is inactive.
    INACTIVE = 0x001C,
    /// Nothing of this resource is left. Ends the loop of `HvCallWithdrawMemory`.
    NO_RESOURCES = 0x001D,
    /// The feature is not available.
    FEATURE_UNAVAILABLE = 0x001E,
    /// The packet was read or written in part only.
    PARTIAL_PACKET = 0x001F,
    /// The processor lacks a feature that was asked for.
    PROCESSOR_FEATURE_NOT_SUPPORTED = 0x0020,
    /// The cache line flush size is incompatible.
    PROCESSOR_CACHE_LINE_FLUSH_SIZE_INCOMPATIBLE = 0x0030,
    /// The buffer is too small.
    INSUFFICIENT_BUFFER = 0x0033,
    /// The processor differs from the boot processor in a way that forbids its use.
    INCOMPATIBLE_PROCESSOR = 0x0037,
    /// No device domain is free.
    INSUFFICIENT_DEVICE_DOMAINS = 0x0038,
    /// The features reported by CPUID cannot be combined.
    CPUID_FEATURE_VALIDATION_ERROR = 0x003C,
    /// The XSAVE features reported by CPUID cannot be combined.
    CPUID_XSAVE_FEATURE_VALIDATION_ERROR = 0x003D,
    /// A logical processor did not start in time.
    PROCESSOR_STARTUP_TIMEOUT = 0x003E,
    /// Firmware enabled SMX in a way that forbids virtualization.
    SMX_ENABLED = 0x003F,
    /// No logical processor has this index.
    INVALID_LP_INDEX = 0x0041,
    /// The register's value is invalid.
    INVALID_REGISTER_VALUE = 0x0050,
    /// The virtual trust level is not in a state that allows the operation.
    INVALID_VTL_STATE = 0x0051,
    /// The processor has no execution prevention.
    NX_NOT_DETECTED = 0x0055,
    /// The device id is invalid.
    INVALID_DEVICE_ID = 0x0057,
    /// The device is not in a state that allows the operation.
    INVALID_DEVICE_STATE = 0x0058,
    /// Page requests of the device are pending.
    PENDING_PAGE_REQUESTS = 0x0059,
    /// The page request is invalid.
    PAGE_REQUEST_INVALID = 0x0060,
    /// The key exists already.
    KEY_ALREADY_EXISTS = 0x0065,
    /// The device belongs to a domain already.
    DEVICE_ALREADY_IN_DOMAIN = 0x0066,
    /// The CPU group id is invalid.
    INVALID_CPU_GROUP_ID = 0x006F,
    /// The CPU group is not in a state that allows the operation.
    INVALID_CPU_GROUP_STATE = 0x0070,
    /// The operation failed.
    OPERATION_FAILED = 0x0071,
    /// Not allowed while nested virtualization is active.
    NOT_ALLOWED_WITH_NESTED_VIRT_ACTIVE = 0x0072,
    /// The root partition's memory pool is exhausted: deposit pages to the root partition and try again.
    INSUFFICIENT_ROOT_MEMORY = 0x0073,
    /// The event buffer was freed already.
    EVENT_BUFFER_ALREADY_FREED = 0x0074,
    /// The partition's pool lacks contiguous pages: deposit a contiguous run and try again.
    INSUFFICIENT_CONTIGUOUS_MEMORY = 0x0075,
    /// The operation timed out.
    TIME_OUT = 0x0078,
    /// The operation goes on; its end is told by an `ASYNC_CALL_COMPLETION` message.
    CALL_PENDING = 0x0079,
    /// The root partition's pool lacks contiguous pages.
    INSUFFICIENT_CONTIGUOUS_ROOT_MEMORY = 0x0083,
    /// The virtual trust level is enabled already.
    VTL_ALREADY_ENABLED = 0x0086,
}

const _: () = assert!(size_of::<HvStatus>() == 2);

/// The result of an operation of the hypercall interface: a value or the status to answer with.
pub type HvResult<T> = Result<T, HvStatus>;

impl HvStatus {
    /// Whether the operation succeeded.
    pub const fn is_success(self) -> bool {
        self.0 == Self::SUCCESS.0
    }

    /// The status as a result.
    pub const fn ok(self) -> HvResult<()> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }

    /// Whether the caller can repair this by depositing memory and calling again.
    pub const fn wants_deposit(self) -> bool {
        matches!(
            self,
            Self::INSUFFICIENT_MEMORY
                | Self::INSUFFICIENT_CONTIGUOUS_MEMORY
                | Self::INSUFFICIENT_ROOT_MEMORY
                | Self::INSUFFICIENT_CONTIGUOUS_ROOT_MEMORY
        )
    }
}

impl From<HvResult<()>> for HvStatus {
    fn from(result: HvResult<()>) -> Self {
        match result {
            Ok(()) => Self::SUCCESS,
            Err(status) => status,
        }
    }
}
