//! Call codes (TLFS "Hypercall Reference"; Linux `hvgdk_mini.h`).

use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number of a hypercall (`HV_CALL_CODE`).
#[open_enum]
#[repr(u16)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub enum HypercallCode {
    /// Switches the address space.
    SWITCH_VIRTUAL_ADDRESS_SPACE = 0x0001,
    /// Flushes all of one address space from the TLBs of VPs 0..=63.
    FLUSH_VIRTUAL_ADDRESS_SPACE = 0x0002,
    /// Flushes ranges of one address space from the TLBs of VPs 0..=63. Rep.
    FLUSH_VIRTUAL_ADDRESS_LIST = 0x0003,
    /// How long a logical processor has run.
    GET_LOGICAL_PROCESSOR_RUN_TIME = 0x0004,
    /// The guest has spun on a lock for long.
    NOTIFY_LONG_SPIN_WAIT = 0x0008,
    /// Enters the hypervisor's debugger.
    INVOKE_HYPERVISOR_DEBUGGER = 0x000A,
    /// Sends an interrupt to VPs 0..=63.
    SEND_SYNTHETIC_CLUSTER_IPI = 0x000B,
    /// Changes the protection that a VTL gives to lower ones. Rep.
    MODIFY_VTL_PROTECTION_MASK = 0x000C,
    /// Enables a VTL for a partition.
    ENABLE_PARTITION_VTL = 0x000D,
    /// Disables a VTL for a partition.
    DISABLE_PARTITION_VTL = 0x000E,
    /// Enables a VTL for a VP.
    ENABLE_VP_VTL = 0x000F,
    /// Disables a VTL for a VP.
    DISABLE_VP_VTL = 0x0010,
    /// Enters a higher VTL.
    VTL_CALL = 0x0011,
    /// Leaves a VTL.
    VTL_RETURN = 0x0012,
    /// Flushes all of one address space from the TLBs of a sparse VP set.
    FLUSH_VIRTUAL_ADDRESS_SPACE_EX = 0x0013,
    /// Flushes ranges of one address space from the TLBs of a sparse VP set. Rep.
    FLUSH_VIRTUAL_ADDRESS_LIST_EX = 0x0014,
    /// Sends an interrupt to a sparse VP set.
    SEND_SYNTHETIC_CLUSTER_IPI_EX = 0x0015,
    /// Creates a child partition.
    CREATE_PARTITION = 0x0040,
    /// Makes a created partition ready for VPs and memory.
    INITIALIZE_PARTITION = 0x0041,
    /// Ends all activity of a partition and its mappings.
    FINALIZE_PARTITION = 0x0042,
    /// Deletes a finalized partition.
    DELETE_PARTITION = 0x0043,
    /// Reads a partition's property.
    GET_PARTITION_PROPERTY = 0x0044,
    /// Writes a partition's property.
    SET_PARTITION_PROPERTY = 0x0045,
    /// The caller's partition id.
    GET_PARTITION_ID = 0x0046,
    /// Enumerates children.
    GET_NEXT_CHILD_PARTITION = 0x0047,
    /// Gives pages to a partition's pool. Rep.
    DEPOSIT_MEMORY = 0x0048,
    /// Takes unused pages out of a partition's pool. Rep.
    WITHDRAW_MEMORY = 0x0049,
    /// How many pages a partition's pool holds and uses.
    GET_MEMORY_BALANCE = 0x004A,
    /// Maps pages of the caller into a child. Rep.
    MAP_GPA_PAGES = 0x004B,
    /// Removes mappings from a child. Rep.
    UNMAP_GPA_PAGES = 0x004C,
    /// Asks for intercept messages.
    INSTALL_INTERCEPT = 0x004D,
    /// Creates a virtual processor.
    CREATE_VP = 0x004E,
    /// Deletes a virtual processor.
    DELETE_VP = 0x004F,
    /// Reads registers of a VP. Rep.
    GET_VP_REGISTERS = 0x0050,
    /// Writes registers of a VP. Rep.
    SET_VP_REGISTERS = 0x0051,
    /// Walks a guest's page tables.
    TRANSLATE_VIRTUAL_ADDRESS = 0x0052,
    /// Reads guest memory.
    READ_GPA = 0x0053,
    /// Writes guest memory.
    WRITE_GPA = 0x0054,
    /// Takes back an asserted interrupt (ExtINT).
    CLEAR_VIRTUAL_INTERRUPT = 0x0056,
    /// Deletes a port.
    DELETE_PORT = 0x0058,
    /// The properties of a connection.
    GET_PORT_PROPERTY = 0x005A,
    /// Deletes a connection.
    DISCONNECT_PORT = 0x005B,
    /// Sends a message through a connection.
    POST_MESSAGE = 0x005C,
    /// Sets an event flag through a connection.
    SIGNAL_EVENT = 0x005D,
    /// Sends debug data.
    POST_DEBUG_DATA = 0x0069,
    /// Receives debug data.
    RETRIEVE_DEBUG_DATA = 0x006A,
    /// Resets the debug session.
    RESET_DEBUG_SESSION = 0x006B,
    /// Maps a statistics page at a place the hypervisor chooses.
    MAP_STATS_PAGE = 0x006C,
    /// Unmaps a statistics page.
    UNMAP_STATS_PAGE = 0x006D,
    /// Maps sparse pages into a child. Rep.
    MAP_SPARSE_GPA_PAGES = 0x006E,
    /// Writes a property of the system.
    SET_SYSTEM_PROPERTY = 0x006F,
    /// Adds a logical processor.
    ADD_LOGICAL_PROCESSOR = 0x0076,
    /// Removes a logical processor.
    REMOVE_LOGICAL_PROCESSOR = 0x0077,
    /// Reads a property of the system.
    GET_SYSTEM_PROPERTY = 0x007B,
    /// Maps an interrupt of a physical device.
    MAP_DEVICE_INTERRUPT = 0x007C,
    /// Unmaps an interrupt of a physical device.
    UNMAP_DEVICE_INTERRUPT = 0x007D,
    /// Sends a device's interrupt to other VPs.
    RETARGET_DEVICE_INTERRUPT = 0x007E,
    /// Enters a sleep state.
    ENTER_SLEEP_STATE = 0x0084,
    /// Tells the hypervisor of an event of the root partition.
    NOTIFY_PARTITION_EVENT = 0x0087,
    /// The consumer has emptied an event ring.
    NOTIFY_PORT_RING_EMPTY = 0x008B,
    /// Changes sparse mappings of a child. Rep.
    MODIFY_SPARSE_GPA_PAGES = 0x0090,
    /// Sets the answer that an intercepted instruction gets from now on.
    REGISTER_INTERCEPT_RESULT = 0x0091,
    /// Takes back what `REGISTER_INTERCEPT_RESULT` set.
    UNREGISTER_INTERCEPT_RESULT = 0x0092,
    /// Asserts an interrupt in a child.
    ASSERT_VIRTUAL_INTERRUPT = 0x0094,
    /// Creates a port.
    CREATE_PORT = 0x0095,
    /// Creates a connection to a port.
    CONNECT_PORT = 0x0096,
    /// Starts a VP of the caller's partition in a given state.
    START_VIRTUAL_PROCESSOR = 0x0099,
    /// VP indices of APIC ids. Rep.
    GET_VP_INDEX_FROM_APIC_ID = 0x009A,
    /// Walks a guest's page tables, with the fault's details.
    TRANSLATE_VIRTUAL_ADDRESS_EX = 0x00AC,
    /// Whether an I/O access would be intercepted.
    CHECK_FOR_IO_INTERCEPT = 0x00AD,
    /// Flushes a nested guest's whole second level translation.
    FLUSH_GUEST_PHYSICAL_ADDRESS_SPACE = 0x00AF,
    /// Flushes ranges of a nested guest's second level translation. Rep.
    FLUSH_GUEST_PHYSICAL_ADDRESS_LIST = 0x00B0,
    /// Sets an event flag of a child's VP.
    SIGNAL_EVENT_DIRECT = 0x00C0,
    /// Delivers a message to a child's VP.
    POST_MESSAGE_DIRECT = 0x00C1,
    /// Runs a child's VP on this processor.
    DISPATCH_VP = 0x00C2,
    /// Reads and changes accessed and dirty bits of a child's pages. Rep.
    GET_GPA_PAGES_ACCESS_STATES = 0x00C9,
    /// Gives pages to the host's access. Rep.
    ACQUIRE_SPARSE_SPA_PAGE_HOST_ACCESS = 0x00D7,
    /// Takes pages from the host's access. Rep.
    RELEASE_SPARSE_SPA_PAGE_HOST_ACCESS = 0x00D8,
    /// Changes which pages of an isolated partition the host sees. Rep.
    MODIFY_SPARSE_GPA_PAGE_HOST_VISIBILITY = 0x00DB,
    /// Maps a state page of a VP.
    MAP_VP_STATE_PAGE = 0x00E1,
    /// Unmaps a state page of a VP.
    UNMAP_VP_STATE_PAGE = 0x00E2,
    /// Reads larger state of a VP.
    GET_VP_STATE = 0x00E3,
    /// Writes larger state of a VP.
    SET_VP_STATE = 0x00E4,
    /// The VPs that an interrupt with a given destination reaches.
    GET_VP_SET_FROM_MDA = 0x00E5,
    /// CPUID answers a VP would get. Rep.
    GET_VP_CPUID_VALUES = 0x00F4,
    /// Reads a partition's property of any size.
    GET_PARTITION_PROPERTY_EX = 0x0101,
    /// Restores a partition's time after migration.
    RESTORE_PARTITION_TIME = 0x0103,
    /// Reads memory-mapped I/O.
    MEMORY_MAPPED_IO_READ = 0x0106,
    /// Writes memory-mapped I/O.
    MEMORY_MAPPED_IO_WRITE = 0x0107,
    /// Writes a partition's property of any size.
    SET_PARTITION_PROPERTY_EX = 0x010A,
    /// Ends the hypervisor and jumps to a 32-bit entry.
    DISABLE_HYPERVISOR_EX = 0x010F,
    /// Asks for intercept messages, of registers too. Rep.
    INSTALL_INTERCEPT_EX = 0x0110,
    /// Sends a virtual interrupt to another VP.
    SET_VIRTUAL_INTERRUPT_TARGET = 0x011F,
    /// Maps a statistics page at a place the caller chooses.
    MAP_STATS_PAGE2 = 0x0131,
    /// Which extended calls there are.
    EXT_QUERY_CAPABILITIES = 0x8001,
    /// Which memory was zeroed at boot.
    EXT_GET_BOOT_ZEROED_MEMORY = 0x8002,
    /// Hints about cold and hot memory.
    EXT_MEMORY_HEAT_HINT = 0x8003,
}
const _: () = assert!(size_of::<HypercallCode>() == 2);

impl HypercallCode {
    /// The first call code of the extended interface.
    pub const FIRST_EXTENDED: u16 = 0x8001;

    /// Whether the call belongs to the extended interface (answered by the parent).
    pub const fn is_extended(self) -> bool {
        self.0 >= Self::FIRST_EXTENDED
    }

    /// Whether the TLFS or Linux's headers define this as a rep call.
    pub const fn is_rep(self) -> bool {
        matches!(
            self,
            Self::FLUSH_VIRTUAL_ADDRESS_LIST
                | Self::MODIFY_VTL_PROTECTION_MASK
                | Self::FLUSH_VIRTUAL_ADDRESS_LIST_EX
                | Self::DEPOSIT_MEMORY
                | Self::WITHDRAW_MEMORY
                | Self::MAP_GPA_PAGES
                | Self::UNMAP_GPA_PAGES
                | Self::MAP_SPARSE_GPA_PAGES
                | Self::MODIFY_SPARSE_GPA_PAGES
                | Self::INSTALL_INTERCEPT_EX
                | Self::GET_VP_REGISTERS
                | Self::SET_VP_REGISTERS
                | Self::GET_VP_INDEX_FROM_APIC_ID
                | Self::FLUSH_GUEST_PHYSICAL_ADDRESS_LIST
                | Self::GET_GPA_PAGES_ACCESS_STATES
                | Self::ACQUIRE_SPARSE_SPA_PAGE_HOST_ACCESS
                | Self::RELEASE_SPARSE_SPA_PAGE_HOST_ACCESS
                | Self::MODIFY_SPARSE_GPA_PAGE_HOST_VISIBILITY
                | Self::GET_VP_CPUID_VALUES
        )
    }
}
