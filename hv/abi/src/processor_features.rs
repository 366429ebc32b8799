//! Processor features in banks, as partition properties report them and partition creation disables them
//! (TLFS `HV_PARTITION_PROCESSOR_FEATURES` and `HV_PARTITION_PROCESSOR_XSAVE_FEATURES`).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bank 0, property 0x0006000A.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ProcessorFeatures0(pub u64);

bitflags! {
    impl ProcessorFeatures0: u64 {
        /// SSE3.
        const SSE3 = 1 << 0;
        /// LAHF and SAHF in 64-bit mode.
        const LAHF_SAHF = 1 << 1;
        /// SSSE3.
        const SSSE3 = 1 << 2;
        /// SSE4.1.
        const SSE4_1 = 1 << 3;
        /// SSE4.2.
        const SSE4_2 = 1 << 4;
        /// SSE4a (AMD).
        const SSE4A = 1 << 5;
        /// XOP (AMD).
        const XOP = 1 << 6;
        /// POPCNT.
        const POP_CNT = 1 << 7;
        /// CMPXCHG16B.
        const CMPXCHG16B = 1 << 8;
        /// CR8 through LOCK MOV CR0 (AMD).
        const ALTMOVCR8 = 1 << 9;
        /// LZCNT.
        const LZCNT = 1 << 10;
        /// Misaligned SSE (AMD).
        const MIS_ALIGN_SSE = 1 << 11;
        /// MMX extensions (AMD).
        const MMX_EXT = 1 << 12;
        /// 3DNow! (AMD).
        const AMD3DNOW = 1 << 13;
        /// Extended 3DNow! (AMD).
        const EXTENDED_AMD3DNOW = 1 << 14;
        /// Pages of 1 GiB.
        const PAGE_1GB = 1 << 15;
        /// AES instructions.
        const AES = 1 << 16;
        /// PCLMULQDQ.
        const PCLMULQDQ = 1 << 17;
        /// Process-context identifiers.
        const PCID = 1 << 18;
        /// FMA4 (AMD).
        const FMA4 = 1 << 19;
        /// F16C.
        const F16C = 1 << 20;
        /// RDRAND.
        const RD_RAND = 1 << 21;
        /// RDFSBASE and its like.
        const RD_WR_FS_GS = 1 << 22;
        /// Supervisor mode execution prevention.
        const SMEP = 1 << 23;
        /// Enhanced REP MOVSB and STOSB.
        const ENHANCED_FAST_STRING = 1 << 24;
        /// BMI1.
        const BMI1 = 1 << 25;
        /// BMI2.
        const BMI2 = 1 << 26;
        /// MOVBE.
        const MOVBE = 1 << 29;
        /// Non-privileged instruction execution prevention.
        const NPIEP1 = 1 << 30;
        /// x87 CS and DS are deprecated.
        const DEP_X87_FPU_SAVE = 1 << 31;
        /// RDSEED.
        const RD_SEED = 1 << 32;
        /// ADCX and ADOX.
        const ADX = 1 << 33;
        /// PREFETCHW.
        const INTEL_PREFETCH = 1 << 34;
        /// Supervisor mode access prevention.
        const SMAP = 1 << 35;
        /// Hardware lock elision.
        const HLE = 1 << 36;
        /// Restricted transactional memory.
        const RTM = 1 << 37;
        /// RDTSCP.
        const RDTSCP = 1 << 38;
        /// CLFLUSHOPT.
        const CLFLUSHOPT = 1 << 39;
        /// CLWB.
        const CLWB = 1 << 40;
        /// SHA instructions.
        const SHA = 1 << 41;
        /// FXSAVE stores the x87 pointers always (AMD).
        const X87_POINTERS_SAVED = 1 << 42;
        /// INVPCID.
        const INVPCID = 1 << 43;
        /// IBRS.
        const IBRS = 1 << 44;
        /// STIBP.
        const STIBP = 1 << 45;
        /// IBPB.
        const IBPB = 1 << 46;
        /// Unrestricted guest (Intel).
        const UNRESTRICTED_GUEST = 1 << 47;
        /// Microarchitectural data sampling is dealt with.
        const MDD = 1 << 48;
        /// Fast short REP MOV.
        const FAST_SHORT_REP_MOV = 1 << 49;
        /// L1 data cache flush.
        const L1DCACHE_FLUSH = 1 << 50;
        /// Not open to rogue data cache load.
        const RDCL_NO = 1 << 51;
        /// Enhanced IBRS.
        const IBRS_ALL = 1 << 52;
        /// L1 data cache flush is not needed.
        const SKIP_L1DF = 1 << 53;
        /// Not open to speculative store bypass.
        const SSB_NO = 1 << 54;
        /// Not open to return stack buffer alternates.
        const RSB_A_NO = 1 << 55;
        /// VIRT_SPEC_CTRL (AMD).
        const VIRT_SPEC_CTRL = 1 << 56;
        /// RDPID.
        const RD_PID = 1 << 57;
        /// User mode instruction prevention.
        const UMIP = 1 << 58;
        /// Not open to microarchitectural data sampling.
        const MBS_NO = 1 << 59;
        /// VERW clears buffers.
        const MB_CLEAR = 1 << 60;
        /// Not open to TSX asynchronous abort.
        const TAA_NO = 1 << 61;
        /// TSX_CTRL.
        const TSX_CTRL = 1 << 62;
    }
}

/// Bank 1, property 0x0006000B.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ProcessorFeatures1(pub u64);

bitflags! {
    impl ProcessorFeatures1: u64 {
        /// APERF and MPERF.
        const A_COUNT_M_COUNT = 1 << 0;
        /// Invariant TSC.
        const TSC_INVARIANT = 1 << 1;
        /// CLZERO (AMD).
        const CL_ZERO = 1 << 2;
        /// RDPRU (AMD).
        const RDPRU = 1 << 3;
        /// 57-bit linear addresses.
        const LA57 = 1 << 4;
        /// Mode-based execution control.
        const MBEC = 1 << 5;
        /// Nested virtualization.
        const NESTED_VIRT = 1 << 6;
        /// Predictive store forwarding can be disabled (AMD).
        const PSFD = 1 << 7;
        /// Shadow stacks.
        const CET_SS = 1 << 8;
        /// Indirect branch tracking.
        const CET_IBT = 1 << 9;
        /// Injection of any exception (Intel).
        const VMX_EXCEPTION_INJECT = 1 << 10;
        /// ENQCMD.
        const ENQCMD = 1 << 11;
        /// UMWAIT and TPAUSE.
        const UMWAIT_TPAUSE = 1 << 12;
        /// MOVDIRI.
        const MOVDIRI = 1 << 13;
        /// MOVDIR64B.
        const MOVDIR64B = 1 << 14;
        /// CLDEMOTE.
        const CLDEMOTE = 1 << 15;
        /// SERIALIZE.
        const SERIALIZE = 1 << 16;
        /// TSC deadline timer.
        const TSC_DEADLINE_TMR = 1 << 17;
        /// IA32_TSC_ADJUST.
        const TSC_ADJUST = 1 << 18;
        /// Fast zero-length REP MOVSB.
        const FZL_REP_MOVSB = 1 << 19;
        /// Fast short REP STOSB.
        const FS_REP_STOSB = 1 << 20;
        /// Fast short REP CMPSB and SCASB.
        const FS_REP_CMPSB = 1 << 21;
        /// TSX load tracking.
        const TSX_LD_TRK = 1 << 22;
        /// Exit information for INS and OUTS (Intel).
        const VMX_INS_OUTS_EXIT_INFO = 1 << 23;
        /// Hypervisor-managed linear address translation (Intel).
        const HLAT = 1 << 24;
        /// Not open to shared buffers data read.
        const SBDR_SSDP_NO = 1 << 25;
        /// Not open to fill buffer stale data propagation.
        const FBSDP_NO = 1 << 26;
        /// Not open to primary stale data propagation.
        const PSDP_NO = 1 << 27;
        /// VERW clears fill buffers.
        const FB_CLEAR = 1 << 28;
        /// Not open to branch type confusion (AMD).
        const BTC_NO = 1 << 29;
        /// IBPB flushes the return stack buffer.
        const IBPB_RSB_FLUSH = 1 << 30;
        /// STIBP always on (AMD).
        const STIBP_ALWAYS_ON = 1 << 31;
        /// IA32_PERF_GLOBAL_CTRL.
        const PERF_GLOBAL_CTRL = 1 << 32;
        /// Execute-only second level pages.
        const NPT_EXECUTE_ONLY = 1 << 33;
        /// Accessed and dirty flags in second level tables.
        const NPT_AD_FLAGS = 1 << 34;
        /// Second level pages of 1 GiB.
        const NPT1_GB_PAGE = 1 << 35;
        /// Node id in the topology (AMD).
        const AMD_PROCESSOR_TOPOLOGY_NODE_ID = 1 << 36;
        /// Local machine check.
        const LOCAL_MACHINE_CHECK = 1 << 37;
        /// 256-bit data path (AMD).
        const EXTENDED_TOPOLOGY_LEAF_FP256_AMD = 1 << 38;
        /// Not open to gather data sampling.
        const GDS_NO = 1 << 39;
        /// CMPCCXADD.
        const CMPCCXADD = 1 << 40;
        /// TSC_AUX is virtualized (AMD).
        const TSC_AUX_VIRTUALIZATION = 1 << 41;
        /// RMPQUERY (AMD).
        const RMP_QUERY = 1 << 42;
        /// Not open to branch history injection.
        const BHI_NO = 1 << 43;
        /// Branch history injection can be disabled.
        const BHI_DIS = 1 << 44;
        /// PREFETCHIT0 and PREFETCHIT1.
        const PREFETCH_I = 1 << 45;
        /// SHA-512 instructions.
        const SHA512 = 1 << 46;
        /// Mitigation control.
        const MITIGATION_CTRL = 1 << 47;
        /// Not open to register file data sampling.
        const RFDS_NO = 1 << 48;
        /// VERW clears register files.
        const RFDS_CLEAR = 1 << 49;
        /// SM3 instructions.
        const SM3 = 1 << 50;
        /// SM4 instructions.
        const SM4 = 1 << 51;
        /// Secure AVIC (AMD).
        const SECURE_AVIC = 1 << 52;
        /// Guest intercept control (AMD).
        const GUEST_INTERCEPT_CTRL = 1 << 53;
        /// Selective branch predictor barrier (AMD).
        const SBPB = 1 << 54;
        /// IBPB flushes branch types (AMD).
        const IBPB_BR_TYPE = 1 << 55;
        /// Not open to speculative return stack overflow (AMD).
        const SRSO_NO = 1 << 56;
        /// The same, between user and kernel (AMD).
        const SRSO_USER_KERNEL_NO = 1 << 57;
        /// VERW clears (AMD).
        const VREW_CLEAR = 1 << 58;
        /// Not open to transient scheduler attacks by the L1 cache (AMD).
        const TSA_L1_NO = 1 << 59;
        /// Not open to transient scheduler attacks by the store queue (AMD).
        const TSA_SQ_NO = 1 << 60;
        /// Not open to transient scheduler attacks by fills (AMD).
        const TSA_FILL_NO = 1 << 63;
    }
}

/// Extended state, property 0x00060002.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct XsaveFeatures(pub u64);

bitflags! {
    impl XsaveFeatures: u64 {
        /// XSAVE.
        const XSAVE = 1 << 0;
        /// XSAVEOPT.
        const XSAVEOPT = 1 << 1;
        /// AVX.
        const AVX = 1 << 2;
        /// AVX2.
        const AVX2 = 1 << 3;
        /// FMA.
        const FMA = 1 << 4;
        /// MPX.
        const MPX = 1 << 5;
        /// AVX-512 F.
        const AVX512 = 1 << 6;
        /// AVX-512 DQ.
        const AVX512_DQ = 1 << 7;
        /// AVX-512 CD.
        const AVX512_CD = 1 << 8;
        /// AVX-512 BW.
        const AVX512_BW = 1 << 9;
        /// AVX-512 VL.
        const AVX512_VL = 1 << 10;
        /// XSAVEC.
        const XSAVE_COMP = 1 << 11;
        /// XSAVES.
        const XSAVE_SUPERVISOR = 1 << 12;
        /// XGETBV of XCR1.
        const XCR1 = 1 << 13;
        /// AVX-512 BITALG.
        const AVX512_BITALG = 1 << 14;
        /// AVX-512 IFMA.
        const AVX512_I_FMA = 1 << 15;
        /// AVX-512 VBMI.
        const AVX512_V_BMI = 1 << 16;
        /// AVX-512 VBMI2.
        const AVX512_V_BMI2 = 1 << 17;
        /// AVX-512 VNNI.
        const AVX512_VNNI = 1 << 18;
        /// GFNI.
        const GFNI = 1 << 19;
        /// VAES.
        const VAES = 1 << 20;
        /// AVX-512 VPOPCNTDQ.
        const AVX512_V_POPCNTDQ = 1 << 21;
        /// VPCLMULQDQ.
        const VPCLMULQDQ = 1 << 22;
        /// AVX-512 BF16.
        const AVX512_BF16 = 1 << 23;
        /// AVX-512 VP2INTERSECT.
        const AVX512_VP2_INTERSECT = 1 << 24;
        /// AVX-512 FP16.
        const AVX512_FP16 = 1 << 25;
        /// IA32_XFD.
        const XFD = 1 << 26;
        /// AMX TILE.
        const AMX_TILE = 1 << 27;
        /// AMX BF16.
        const AMX_BF16 = 1 << 28;
        /// AMX INT8.
        const AMX_INT8 = 1 << 29;
        /// AVX VNNI.
        const AVX_VNNI = 1 << 30;
        /// AVX IFMA.
        const AVX_IFMA = 1 << 31;
        /// AVX NE-CONVERT.
        const AVX_NE_CONVERT = 1 << 32;
        /// AVX VNNI-INT8.
        const AVX_VNNI_INT8 = 1 << 33;
        /// AVX VNNI-INT16.
        const AVX_VNNI_INT16 = 1 << 34;
        /// AVX10.1, 256 bits.
        const AVX10_1_256 = 1 << 35;
        /// AVX10.1, 512 bits.
        const AVX10_1_512 = 1 << 36;
        /// AMX FP16.
        const AMX_FP16 = 1 << 37;
        /// APX.
        const APX = 1 << 38;
        /// APX NCI, NDD, NF.
        const APX_NCI_NDD_NF = 1 << 39;
    }
}
