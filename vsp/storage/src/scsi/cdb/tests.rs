use proptest::prelude::*;

use super::opcode::*;
use super::*;

fn parse(bytes: &[u8]) -> Result<Command, Sense> {
    let mut cdb = bytes.to_vec();
    cdb.resize(length(bytes[0]).max(bytes.len()), 0);
    Command::parse(&cdb)
}

#[test]
fn reads_and_writes_of_all_lengths() {
    let read = |lba, count, unit_access| Ok(Command::Read { blocks: Blocks { lba, count }, unit_access });
    let write = |lba, count, unit_access| Ok(Command::Write { blocks: Blocks { lba, count }, unit_access });
    assert_eq!(parse(&[READ_6, 0xFF, 0x12, 0x34, 0]), read(0x1F_1234, 256, false));
    assert_eq!(parse(&[WRITE_6, 0, 0, 9, 3]), write(9, 3, false));
    assert_eq!(parse(&[READ_10, 0x18, 1, 2, 3, 4, 0, 0, 7]), read(0x0102_0304, 7, true));
    assert_eq!(parse(&[WRITE_12, 0, 0, 0, 0, 5, 0, 1, 0, 0]), write(5, 0x1_0000, false));
    let mut long = [0; 16];
    (long[0], long[1], long[2], long[9], long[13]) = (WRITE_16, 8, 0x80, 1, 2);
    assert_eq!(parse(&long), write(1 << 63 | 1, 2, true));
    // Protection information.
    assert_eq!(parse(&[READ_10, 0x20]), Err(Sense::INVALID_FIELD));
}

#[test]
fn commands_that_are_too_short_are_refused() {
    for code in 0..=255u8 {
        let whole = length(code).max(1);
        for short in 1..whole {
            let mut cdb = vec![0; short];
            cdb[0] = code;
            let refused = Command::parse(&cdb);
            assert!(matches!(refused, Err(Sense::INVALID_FIELD | Sense::INVALID_OPCODE)), "{code:02x}");
        }
    }
    assert_eq!(Command::parse(&[]), Err(Sense::INVALID_OPCODE));
}

#[test]
fn fields_that_are_not_there_are_refused() {
    for cdb in [
        &[INQUIRY, 2][..],
        &[INQUIRY, 0, 0x80],
        &[UNMAP, 1],
        &[VERIFY_10, 2],
        &[WRITE_SAME_10, 1],
        &[WRITE_SAME_10, 0x10],
        &[WRITE_SAME_16, 0x20],
    ] {
        assert_eq!(parse(cdb), Err(Sense::INVALID_FIELD), "{cdb:02x?}");
    }
    for cdb in [&[0xFFu8][..], &[0x60], &[SERVICE_ACTION_IN_16, 0x11], &[0x1D], &[0x15]] {
        assert_eq!(parse(cdb), Err(Sense::INVALID_OPCODE), "{cdb:02x?}");
    }
}

#[test]
fn old_programs_ask_for_the_sessions_in_the_control_byte() {
    let toc = |cdb: &[u8]| match parse(cdb) {
        Ok(Command::ReadToc { format, .. }) => format,
        other => panic!("{other:?}"),
    };
    assert_eq!(toc(&[READ_TOC, 0, 1]), 1);
    assert_eq!(toc(&[READ_TOC, 0, 0, 0, 0, 0, 0, 0, 4, 0x40]), 1);
}

proptest! {
    #[test]
    fn any_bytes_are_a_command_or_are_refused(cdb in prop::collection::vec(any::<u8>(), 0..20)) {
        match Command::parse(&cdb) {
            Ok(_) => prop_assert!(cdb.len() >= length(cdb[0])),
            Err(sense) => prop_assert_eq!(sense.key, 5),
        }
    }

    #[test]
    fn counts_and_addresses_survive(lba in any::<u64>(), count in any::<u32>(), write in any::<bool>()) {
        let mut cdb = vec![if write { WRITE_16 } else { READ_16 }, 0];
        cdb.extend(lba.to_be_bytes());
        cdb.extend(count.to_be_bytes());
        cdb.extend([0, 0]);
        let blocks = Blocks { lba, count };
        let expected = if write {
            Command::Write { blocks, unit_access: false }
        } else {
            Command::Read { blocks, unit_access: false }
        };
        prop_assert_eq!(Command::parse(&cdb), Ok(expected));
    }
}
