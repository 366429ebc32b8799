use super::*;
use crate::vmx::capability::tests::haswell;
use crate::vmx::state::UNUSABLE;
use std::collections::HashMap;

fn capabilities() -> Capabilities {
    Capabilities::read(|register| haswell()[&register], [0; 4]).expect("all there")
}

/// A child's guest in 64-bit mode, and the hypervisor.
fn sound() -> HashMap<Field, u64> {
    use Field::*;
    let controls = capabilities().child;
    let mut fields = HashMap::from([
        (PinControls, controls.pin.into()),
        (PrimaryControls, controls.primary.into()),
        (SecondaryControls, controls.secondary.into()),
        (ExitControls, controls.exit.into()),
        (EntryControls, u64::from(controls.entry) | 1 << 9),
        (Vpid, 1),
        (EptPointer, capabilities().ept_pointer(0x1234)),
        (HostCr0, 0x8001_0033),
        (HostCr4, 0x2020),
        (HostPat, 0x0007_0406_0007_0406),
        (HostEfer, 0xd00),
        (HostCsSelector, 8),
        (HostTrSelector, 0x18),
        (GuestCr0, 0x8005_0033),
        (GuestCr4, 0x2020),
        (GuestEfer, 0x500),
        (GuestPat, 0x0007_0406_0007_0406),
        (GuestRflags, 2),
        (GuestRip, 0xffff_ffff_8000_0000),
        (VmcsLink, u64::MAX),
        (GuestCsRights, 0xa09b),
        (GuestCsLimit, 0xffff_ffff),
        (GuestTrRights, 0x8b),
        (GuestTrLimit, 0x67),
        (GuestLdtrRights, UNUSABLE),
    ]);
    for (rights, limit) in [
        (GuestEsRights, GuestEsLimit),
        (GuestSsRights, GuestSsLimit),
        (GuestDsRights, GuestDsLimit),
        (GuestFsRights, GuestFsLimit),
        (GuestGsRights, GuestGsLimit),
    ] {
        fields.extend([(rights, 0xc093), (limit, 0xffff_ffff)]);
    }
    fields
}

fn findings(fields: &HashMap<Field, u64>) -> Vec<Field> {
    let mut all = Vec::new();
    find(fields, &capabilities(), &mut |finding| all.push(finding.field));
    all
}

#[test]
fn a_sound_state_has_no_findings() {
    assert_eq!(findings(&sound()), []);
    let mut injecting = sound();
    for (info, error, rflags) in
        [(0x8000_0030, 0, 0x202), (0x8000_0202, 0, 2), (0x8000_0b0e, 6, 2), (0x8000_0306, 0, 2)]
    {
        injecting.extend([
            (Field::EntryInterruptionInfo, info),
            (Field::EntryExceptionError, error),
            (Field::GuestRflags, rflags),
        ]);
        assert_eq!(findings(&injecting), [], "{info:#x}");
    }
}

/// Every one of these is named, by its own field.
fn each_is_named(cases: &[(Field, u64)]) {
    for (field, value) in cases {
        let mut fields = sound();
        fields.insert(*field, *value);
        assert!(findings(&fields).contains(field), "{field:?} {value:#x}: {:?}", findings(&fields));
    }
}

#[test]
fn wrong_controls_are_named() {
    use Field::*;
    let controls = capabilities().child;
    each_is_named(&[
        (PinControls, u64::from(controls.pin) & !(1 << 3)),
        (PrimaryControls, u64::from(controls.primary) | 1 << 25),
        (SecondaryControls, u64::from(controls.secondary) & !2),
        (ExitControls, u64::from(controls.exit) & !(1 << 9)),
        (EntryControls, u64::from(controls.entry) & !(1 << 15)),
        (Cr3TargetCount, 5),
        (MsrBitmap, 0x1001),
        (VirtualApicPage, 8),
        (TprThreshold, 0x10),
        (Vpid, 0),
        (EptPointer, 0x123_405d),
        (EptPointer, 0x123_4046),
        (EptPointer, 0x123_40de),
        (ExitMsrLoadCount, 1),
        (EntryMsrLoadCount, 1),
        (EntryInterruptionInfo, 0x8000_0130),
        (EntryInterruptionInfo, 0x8000_0203),
        (EntryInterruptionInfo, 0x8000_0340),
        (EntryInterruptionInfo, 0x8000_030e),
        (EntryInterruptionInfo, 0x8000_0b06),
        (EntryInterruptionInfo, 0x8001_0306),
    ]);
    let mut by_software = sound();
    by_software.insert(EntryInterruptionInfo, 0x8000_0480);
    assert!(findings(&by_software).contains(&EntryInstructionLength));
    let mut without = capabilities();
    without.accessed_dirty = false;
    let mut all = Vec::new();
    find(&sound(), &without, &mut |finding| all.push(finding.field));
    assert_eq!(all, [EptPointer]);
}

#[test]
fn a_wrong_host_is_named() {
    use Field::*;
    each_is_named(&[
        (HostCr0, 0x33),
        (HostCr0, 1 << 40 | 0x8001_0033),
        (HostCr4, 0x20),
        (HostCr4, 0x2000),
        (HostCr3, 1 << 60),
        (HostRip, 1 << 50),
        (HostGdtrBase, 1 << 50),
        (HostPat, 2),
        (HostSsSelector, 3),
        (HostCsSelector, 0),
        (HostTrSelector, 0),
        (HostEfer, 0x800),
    ]);
}

#[test]
fn a_wrong_guest_is_named() {
    use Field::*;
    each_is_named(&[
        (GuestCr0, 0x5_0033),
        (GuestCr0, 0x8005_0013),
        (GuestCr4, 0x2000),
        (GuestCr4, 0x20),
        (GuestCr3, 1 << 60),
        (GuestEfer, 0x100),
        (GuestEfer, 0x1500),
        (GuestPat, 2),
        (GuestDr7, 1 << 33),
        (GuestDebugCtl, 1 << 20),
        (GuestSysenterEip, 1 << 50),
        (GuestCsRights, 0xe09b),
        (GuestCsRights, 0xa091),
        (GuestCsRights, 0xa0fb),
        (GuestSsRights, 0xc09b),
        (GuestDsRights, 0xc092),
        (GuestDsRights, 0xc013),
        (GuestDsBase, 1 << 32),
        (GuestFsBase, 1 << 50),
        (GuestTrRights, 0x89),
        (GuestTrSelector, 4),
        (GuestLdtrRights, 0x83),
        (GuestGdtrBase, 1 << 50),
        (GuestIdtrLimit, 0x1_0000),
        (GuestRflags, 0x8002),
        (GuestRflags, 0x2_0002),
        (GuestRip, 1 << 60),
        (GuestActivity, 4),
        (GuestInterruptibility, 3),
        (GuestInterruptibility, 1),
        (GuestPendingDebug, 1 << 20),
        (VmcsLink, 0),
    ]);
    let mut small = sound();
    small.insert(GuestEsLimit, 0x1000);
    assert_eq!(findings(&small), [GuestEsRights], "the granularity");
}

#[test]
fn what_depends_on_modes_is_looked_at_in_them() {
    use Field::*;
    let with = |changes: &[(Field, u64)]| {
        let mut fields = sound();
        fields.extend(changes.iter().copied());
        findings(&fields)
    };
    // Protected mode with PAE.
    let entry = u64::from(capabilities().child.entry);
    let narrow = [(EntryControls, entry), (GuestEfer, 0), (GuestCsRights, 0xc09b), (GuestRip, 0x10_0000)];
    assert_eq!(with(&narrow), []);
    assert_eq!(with(&[&narrow[..], &[(GuestPdpte2, 0x1003)]].concat()), [GuestPdpte2]);
    assert_eq!(with(&[&narrow[..], &[(GuestCr4, 0x2_2020)]].concat()), [GuestCr4]);
    assert_eq!(with(&[&narrow[..], &[(GuestRip, 1 << 32)]].concat()), [GuestRip]);
    // Virtual-8086 mode: segments are what their selectors say.
    let found = with(&[&narrow[..], &[(GuestRflags, 0x2_0002)]].concat());
    assert!(found.contains(&GuestCsRights) && found.contains(&GuestSsLimit), "{found:?}");
    assert_eq!(with(&[(GuestActivity, 1), (GuestRflags, 0x202)]), []);
    assert_eq!(
        with(&[(GuestActivity, 1), (GuestRflags, 0x202), (GuestInterruptibility, 1)]),
        [GuestActivity]
    );
    let nmi = [(EntryInterruptionInfo, 0x8000_0202), (GuestInterruptibility, 8)];
    assert_eq!(with(&nmi), [GuestInterruptibility]);
    assert_eq!(with(&[(EntryInterruptionInfo, 0x8000_0030)]), [GuestRflags], "interrupts are off");
}
