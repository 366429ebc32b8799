//! Names of registers that come in families: vector registers, MTRRs, the local APIC.

use crate::registers::RegisterName;

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $value:literal),* $(,)?) => {
        impl RegisterName { $( $(#[$doc])* pub const $name: Self = Self($value); )* }
    };
}

names! {
    /// XMM0.
    XMM0 = 0x00030000,
    /// XMM1.
    XMM1 = 0x00030001,
    /// XMM2.
    XMM2 = 0x00030002,
    /// XMM3.
    XMM3 = 0x00030003,
    /// XMM4.
    XMM4 = 0x00030004,
    /// XMM5.
    XMM5 = 0x00030005,
    /// XMM6.
    XMM6 = 0x00030006,
    /// XMM7.
    XMM7 = 0x00030007,
    /// XMM8.
    XMM8 = 0x00030008,
    /// XMM9.
    XMM9 = 0x00030009,
    /// XMM10.
    XMM10 = 0x0003000A,
    /// XMM11.
    XMM11 = 0x0003000B,
    /// XMM12.
    XMM12 = 0x0003000C,
    /// XMM13.
    XMM13 = 0x0003000D,
    /// XMM14.
    XMM14 = 0x0003000E,
    /// XMM15.
    XMM15 = 0x0003000F,
    /// ST0 or MMX0.
    FP_MMX0 = 0x00030010,
    /// ST1 or MMX1.
    FP_MMX1 = 0x00030011,
    /// ST2 or MMX2.
    FP_MMX2 = 0x00030012,
    /// ST3 or MMX3.
    FP_MMX3 = 0x00030013,
    /// ST4 or MMX4.
    FP_MMX4 = 0x00030014,
    /// ST5 or MMX5.
    FP_MMX5 = 0x00030015,
    /// ST6 or MMX6.
    FP_MMX6 = 0x00030016,
    /// ST7 or MMX7.
    FP_MMX7 = 0x00030017,
    /// IA32_MTRRCAP.
    MSR_MTRR_CAP = 0x0008000D,
    /// IA32_MTRR_DEF_TYPE.
    MSR_MTRR_DEF_TYPE = 0x0008000E,
    /// IA32_MTRR_PHYSBASE0.
    MSR_MTRR_PHYS_BASE0 = 0x00080010,
    /// IA32_MTRR_PHYSBASE1.
    MSR_MTRR_PHYS_BASE1 = 0x00080011,
    /// IA32_MTRR_PHYSBASE2.
    MSR_MTRR_PHYS_BASE2 = 0x00080012,
    /// IA32_MTRR_PHYSBASE3.
    MSR_MTRR_PHYS_BASE3 = 0x00080013,
    /// IA32_MTRR_PHYSBASE4.
    MSR_MTRR_PHYS_BASE4 = 0x00080014,
    /// IA32_MTRR_PHYSBASE5.
    MSR_MTRR_PHYS_BASE5 = 0x00080015,
    /// IA32_MTRR_PHYSBASE6.
    MSR_MTRR_PHYS_BASE6 = 0x00080016,
    /// IA32_MTRR_PHYSBASE7.
    MSR_MTRR_PHYS_BASE7 = 0x00080017,
    /// IA32_MTRR_PHYSBASE8.
    MSR_MTRR_PHYS_BASE8 = 0x00080018,
    /// IA32_MTRR_PHYSBASE9.
    MSR_MTRR_PHYS_BASE9 = 0x00080019,
    /// IA32_MTRR_PHYSBASE10.
    MSR_MTRR_PHYS_BASEA = 0x0008001A,
    /// IA32_MTRR_PHYSBASE11.
    MSR_MTRR_PHYS_BASEB = 0x0008001B,
    /// IA32_MTRR_PHYSBASE12.
    MSR_MTRR_PHYS_BASEC = 0x0008001C,
    /// IA32_MTRR_PHYSBASE13.
    MSR_MTRR_PHYS_BASED = 0x0008001D,
    /// IA32_MTRR_PHYSBASE14.
    MSR_MTRR_PHYS_BASEE = 0x0008001E,
    /// IA32_MTRR_PHYSBASE15.
    MSR_MTRR_PHYS_BASEF = 0x0008001F,
    /// IA32_MTRR_PHYSMASK0.
    MSR_MTRR_PHYS_MASK0 = 0x00080040,
    /// IA32_MTRR_PHYSMASK1.
    MSR_MTRR_PHYS_MASK1 = 0x00080041,
    /// IA32_MTRR_PHYSMASK2.
    MSR_MTRR_PHYS_MASK2 = 0x00080042,
    /// IA32_MTRR_PHYSMASK3.
    MSR_MTRR_PHYS_MASK3 = 0x00080043,
    /// IA32_MTRR_PHYSMASK4.
    MSR_MTRR_PHYS_MASK4 = 0x00080044,
    /// IA32_MTRR_PHYSMASK5.
    MSR_MTRR_PHYS_MASK5 = 0x00080045,
    /// IA32_MTRR_PHYSMASK6.
    MSR_MTRR_PHYS_MASK6 = 0x00080046,
    /// IA32_MTRR_PHYSMASK7.
    MSR_MTRR_PHYS_MASK7 = 0x00080047,
    /// IA32_MTRR_PHYSMASK8.
    MSR_MTRR_PHYS_MASK8 = 0x00080048,
    /// IA32_MTRR_PHYSMASK9.
    MSR_MTRR_PHYS_MASK9 = 0x00080049,
    /// IA32_MTRR_PHYSMASK10.
    MSR_MTRR_PHYS_MASKA = 0x0008004A,
    /// IA32_MTRR_PHYSMASK11.
    MSR_MTRR_PHYS_MASKB = 0x0008004B,
    /// IA32_MTRR_PHYSMASK12.
    MSR_MTRR_PHYS_MASKC = 0x0008004C,
    /// IA32_MTRR_PHYSMASK13.
    MSR_MTRR_PHYS_MASKD = 0x0008004D,
    /// IA32_MTRR_PHYSMASK14.
    MSR_MTRR_PHYS_MASKE = 0x0008004E,
    /// IA32_MTRR_PHYSMASK15.
    MSR_MTRR_PHYS_MASKF = 0x0008004F,
    /// IA32_MTRR_FIX64K_00000.
    MSR_MTRR_FIX64K00000 = 0x00080070,
    /// IA32_MTRR_FIX16K_80000.
    MSR_MTRR_FIX16K80000 = 0x00080071,
    /// IA32_MTRR_FIX16K_A0000.
    MSR_MTRR_FIX16KA0000 = 0x00080072,
    /// IA32_MTRR_FIX4K_C0000.
    MSR_MTRR_FIX4KC0000 = 0x00080073,
    /// IA32_MTRR_FIX4K_C8000.
    MSR_MTRR_FIX4KC8000 = 0x00080074,
    /// IA32_MTRR_FIX4K_D0000.
    MSR_MTRR_FIX4KD0000 = 0x00080075,
    /// IA32_MTRR_FIX4K_D8000.
    MSR_MTRR_FIX4KD8000 = 0x00080076,
    /// IA32_MTRR_FIX4K_E0000.
    MSR_MTRR_FIX4KE0000 = 0x00080077,
    /// IA32_MTRR_FIX4K_E8000.
    MSR_MTRR_FIX4KE8000 = 0x00080078,
    /// IA32_MTRR_FIX4K_F0000.
    MSR_MTRR_FIX4KF0000 = 0x00080079,
    /// IA32_MTRR_FIX4K_F8000.
    MSR_MTRR_FIX4KF8000 = 0x0008007A,
    /// APIC id.
    APIC_ID = 0x00084802,
    /// APIC version.
    APIC_VERSION = 0x00084803,
    /// Task priority.
    APIC_TPR = 0x00084808,
    /// Processor priority.
    APIC_PPR = 0x0008480A,
    /// End of interrupt.
    APIC_EOI = 0x0008480B,
    /// Logical destination.
    APIC_LDR = 0x0008480D,
    /// Spurious vector.
    APIC_SPURIOUS = 0x0008480F,
    /// Vectors 0..=31 in service.
    APIC_ISR0 = 0x00084810,
    /// Vectors 32..=63 in service.
    APIC_ISR1 = 0x00084811,
    /// Vectors 64..=95 in service.
    APIC_ISR2 = 0x00084812,
    /// Vectors 96..=127 in service.
    APIC_ISR3 = 0x00084813,
    /// Vectors 128..=159 in service.
    APIC_ISR4 = 0x00084814,
    /// Vectors 160..=191 in service.
    APIC_ISR5 = 0x00084815,
    /// Vectors 192..=223 in service.
    APIC_ISR6 = 0x00084816,
    /// Vectors 224..=255 in service.
    APIC_ISR7 = 0x00084817,
    /// Vectors 0..=31 that are level-triggered.
    APIC_TMR0 = 0x00084818,
    /// Vectors 32..=63 that are level-triggered.
    APIC_TMR1 = 0x00084819,
    /// Vectors 64..=95 that are level-triggered.
    APIC_TMR2 = 0x0008481A,
    /// Vectors 96..=127 that are level-triggered.
    APIC_TMR3 = 0x0008481B,
    /// Vectors 128..=159 that are level-triggered.
    APIC_TMR4 = 0x0008481C,
    /// Vectors 160..=191 that are level-triggered.
    APIC_TMR5 = 0x0008481D,
    /// Vectors 192..=223 that are level-triggered.
    APIC_TMR6 = 0x0008481E,
    /// Vectors 224..=255 that are level-triggered.
    APIC_TMR7 = 0x0008481F,
    /// Vectors 0..=31 requested.
    APIC_IRR0 = 0x00084820,
    /// Vectors 32..=63 requested.
    APIC_IRR1 = 0x00084821,
    /// Vectors 64..=95 requested.
    APIC_IRR2 = 0x00084822,
    /// Vectors 96..=127 requested.
    APIC_IRR3 = 0x00084823,
    /// Vectors 128..=159 requested.
    APIC_IRR4 = 0x00084824,
    /// Vectors 160..=191 requested.
    APIC_IRR5 = 0x00084825,
    /// Vectors 192..=223 requested.
    APIC_IRR6 = 0x00084826,
    /// Vectors 224..=255 requested.
    APIC_IRR7 = 0x00084827,
    /// Error status.
    APIC_ESR = 0x00084828,
    /// Interrupt command.
    APIC_ICR = 0x00084830,
    /// LVT timer entry.
    APIC_LVT_TIMER = 0x00084832,
    /// LVT thermal entry.
    APIC_LVT_THERMAL = 0x00084833,
    /// LVT performance entry.
    APIC_LVT_PERFMON = 0x00084834,
    /// LVT LINT0 entry.
    APIC_LVT_LINT0 = 0x00084835,
    /// LVT LINT1 entry.
    APIC_LVT_LINT1 = 0x00084836,
    /// LVT error entry.
    APIC_LVT_ERROR = 0x00084837,
    /// Timer initial count.
    APIC_INIT_COUNT = 0x00084838,
    /// Timer current count.
    APIC_CURRENT_COUNT = 0x00084839,
    /// Timer divider.
    APIC_DIVIDE = 0x0008483E,
    /// Self IPI.
    APIC_SELF_IPI = 0x0008483F,
}
