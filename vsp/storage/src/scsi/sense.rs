//! Sense data: why a command failed (SPC-5, 4.4).

/// Sense key and additional sense code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Its qualifier.
    pub ascq: u8,
}

const fn sense(key: u8, asc: u8, ascq: u8) -> Sense {
    Sense { key, asc, ascq }
}

impl Sense {
    /// Nothing to tell.
    pub const NONE: Sense = sense(0x0, 0x00, 0x00);
    /// There is no medium in the drive.
    pub const NO_MEDIUM: Sense = sense(0x2, 0x3A, 0x00);
    /// Reading from the backing file failed: unrecovered read error.
    pub const READ_ERROR: Sense = sense(0x3, 0x11, 0x00);
    /// Writing to the backing file failed.
    pub const WRITE_ERROR: Sense = sense(0x3, 0x0C, 0x00);
    /// The backing file cannot be used at all: internal target failure.
    pub const TARGET_FAILURE: Sense = sense(0x4, 0x44, 0x00);
    /// The command is not known.
    pub const INVALID_OPCODE: Sense = sense(0x5, 0x20, 0x00);
    /// A block address behind the end.
    pub const OUT_OF_RANGE: Sense = sense(0x5, 0x21, 0x00);
    /// A field of the command has a value that is not possible.
    pub const INVALID_FIELD: Sense = sense(0x5, 0x24, 0x00);
    /// There is no such logical unit.
    pub const NO_LOGICAL_UNIT: Sense = sense(0x5, 0x25, 0x00);
    /// A field of the data that came with a command has a value that is not possible.
    pub const INVALID_PARAMETER: Sense = sense(0x5, 0x26, 0x00);
    /// The data that came with a command is too short.
    pub const PARAMETER_LENGTH: Sense = sense(0x5, 0x1A, 0x00);
    /// The medium may not be taken out: its removal is prevented.
    pub const REMOVAL_PREVENTED: Sense = sense(0x5, 0x53, 0x02);
    /// Another medium may be in the drive.
    pub const MEDIUM_CHANGED: Sense = sense(0x6, 0x28, 0x00);
    /// The disk has another size.
    pub const CAPACITY_CHANGED: Sense = sense(0x6, 0x2A, 0x09);
    /// The disk may not be written.
    pub const WRITE_PROTECTED: Sense = sense(0x7, 0x27, 0x00);
    /// The backing file cannot grow: space allocation failed write protect.
    pub const NO_SPACE: Sense = sense(0x7, 0x27, 0x07);

    /// Fixed-format sense data of a current error (SPC-5, table 48).
    pub fn fixed(self) -> [u8; 18] {
        let mut data = [0; 18];
        data[0] = 0x70;
        data[2] = self.key;
        data[7] = 10;
        (data[12], data[13]) = (self.asc, self.ascq);
        data
    }

    /// Descriptor-format sense data without descriptors.
    pub fn descriptor(self) -> [u8; 8] {
        [0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0]
    }
}
