//! Sizes and offsets are those of the `mshv-bindings` crate, wherever it has the type.

use mshv_bindings as mshv;
use parterre_abi::{cpuid, hypercall as call, lapic, message as msg, property, registers as reg, vp_page};
use std::mem::offset_of;

/// Compares the size of a type, and the offsets of its fields (`ours => theirs` where names differ).
macro_rules! same_layout {
    ($($ours:path, $theirs:path { $($field:ident $(=> $other:ident)?),* $(,)? })*) => { $(
        assert_eq!(size_of::<$ours>(), size_of::<$theirs>(), "size of {}", stringify!($ours));
        $( assert_eq!(
            offset_of!($ours, $field),
            same_layout!(@offset $theirs, $field $(=> $other)?),
            "{}.{}", stringify!($ours), stringify!($field)
        ); )*
    )* };
    (@offset $theirs:path, $field:ident => $other:ident) => { offset_of!($theirs, $other) };
    (@offset $theirs:path, $field:ident) => { offset_of!($theirs, $field) };
}

#[test]
fn registers() {
    same_layout! {
        reg::RegisterValue, mshv::hv_register_value {}
        reg::RegisterAssoc, mshv::hv_register_assoc { name, reserved1, reserved2, value }
        reg::SegmentRegister, mshv::hv_x64_segment_register { base, limit, selector }
        reg::TableRegister, mshv::hv_x64_table_register { pad, limit, base }
        reg::FpControlStatusRegister, mshv::hv_x64_fp_control_status_register {}
        reg::XmmControlStatusRegister, mshv::hv_x64_xmm_control_status_register {}
        reg::PendingExceptionEvent, mshv::hv_x64_pending_exception_event {}
        reg::PendingInterruptionRegister, mshv::hv_x64_pending_interruption_register {}
        reg::InternalActivityRegister, mshv::hv_internal_activity_register {}
        lapic::LapicState, mshv::hv_local_interrupt_controller_state {
            apic_id, apic_spurious, apic_isr, apic_tmr, apic_irr, apic_esr, apic_icr_high, apic_icr_low, apic_lvt_timer,
            apic_lvt_lint0, apic_lvt_cmci, apic_error_status, apic_initial_count, apic_counter_value,
            apic_divide_configuration, apic_remote_read,
        }
    }
    assert_eq!(size_of::<vp_page::VpRegisterPage>(), size_of::<mshv::hv_vp_register_page>());
    assert_eq!(offset_of!(vp_page::VpRegisterPage, cr0), offset_of!(mshv::hv_vp_register_page, cr0));
    assert_eq!(offset_of!(vp_page::VpRegisterPage, xfem), offset_of!(mshv::hv_vp_register_page, xfem));
    assert_eq!(
        vp_page::VpRegisterPage::INTERRUPT_VECTORS_OFFSET,
        offset_of!(mshv::hv_vp_register_page, interrupt_vectors)
    );
}

#[test]
fn messages() {
    same_layout! {
        msg::MessageHeader, mshv::hv_message_header { message_type, payload_size, message_flags, reserved }
        msg::Message, mshv::hv_message { header, payload => u }
        msg::InterceptMessageHeader, mshv::hv_x64_intercept_message_header {
            vp_index, intercept_access_type, execution_state, cs_segment, rip, rflags,
        }
        msg::MemoryInterceptMessage, mshv::hv_x64_memory_intercept_message {
            header, cache_type, instruction_byte_count, memory_access_info, tpr_priority, guest_virtual_address,
            guest_physical_address, instruction_bytes,
        }
        msg::IoPortInterceptMessage, mshv::hv_x64_io_port_intercept_message {
            port_number, access_info, instruction_byte_count, rax, instruction_bytes, ds_segment, es_segment, rcx, rsi, rdi,
        }
        msg::MsrInterceptMessage, mshv::hv_x64_msr_intercept_message { msr_number, rdx, rax }
        msg::CpuidInterceptMessage, mshv::hv_x64_cpuid_intercept_message {
            rax, rcx, rdx, rbx, default_result_rax, default_result_rcx, default_result_rdx, default_result_rbx,
        }
        msg::ExceptionInterceptMessage, mshv::hv_x64_exception_intercept_message {
            exception_vector, exception_info, instruction_byte_count, error_code, exception_parameter,
            instruction_bytes, ds_segment, ss_segment, registers => rax,
        }
        msg::HypercallInterceptMessage, mshv::hv_x64_hypercall_intercept_message {
            rax, rbx, rcx, rdx, r8, rsi, rdi, xmm_registers => xmmregisters,
        }
        msg::InvalidVpRegisterMessage, mshv::hv_x64_invalid_vp_register_message { vp_index }
        msg::UnsupportedFeatureMessage, mshv::hv_x64_unsupported_feature_message { feature_code, feature_parameter }
        msg::InterruptionDeliverableMessage, mshv::hv_x64_interruption_deliverable_message { deliverable_type }
        msg::SintDeliverableMessage, mshv::hv_x64_sint_deliverable_message { deliverable_sints }
        msg::SipiInterceptMessage, mshv::hv_x64_sipi_intercept_message { target_vp_index, interrupt_vector }
        msg::ApicEoiMessage, mshv::hv_x64_apic_eoi_message { vp_index, interrupt_vector }
        msg::OpaqueInterceptMessage, mshv::hv_opaque_intercept_message { vp_index }
        msg::TimerMessagePayload, mshv::TimerMessagePayload { timer_index, expiration_time, delivery_time }
    }
}

#[test]
fn hypercalls() {
    same_layout! {
        call::GetVpRegistersInput, mshv::hv_input_get_vp_registers { partition_id, vp_index, input_vtl }
        call::SetVpRegistersInput, mshv::hv_input_set_vp_registers { partition_id, vp_index, input_vtl }
        call::InstallInterceptInput, mshv::hv_input_install_intercept { access_type, intercept_type, intercept_parameter }
        call::GetPartitionPropertyInput, mshv::hv_input_get_partition_property { property_code }
        call::GetPartitionPropertyOutput, mshv::hv_output_get_partition_property { property_value }
        call::SetPartitionPropertyInput, mshv::hv_input_set_partition_property { property_code, property_value }
        call::GetPartitionPropertyExInput, mshv::hv_input_get_partition_property_ex { property_code }
        call::GetVpCpuidValuesInput, mshv::hv_input_get_vp_cpuid_values { vp_index, flags, reserved, padding }
        call::CpuidLeafInfo, mshv::hv_cpuid_leaf_info { eax, ecx, xfem, xss }
        cpuid::CpuidResult, mshv::hv_output_get_vp_cpuid_values {}
        call::TranslateGvaResult, mshv::hv_translate_gva_result {}
        call::TranslateVirtualAddressInput, mshv::hv_input_translate_virtual_address { vp_index, control_flags, gva_page }
        call::TranslateVirtualAddressOutput, mshv::hv_output_translate_virtual_address { translation_result, gpa_page }
        call::RegisterInterceptResultInput, mshv::hv_input_register_intercept_result {
            partition_id, vp_index, intercept_type, parameters,
        }
        call::RegisterInterceptResultParameters, mshv::hv_register_intercept_result_parameters {}
        call::CpuidResultParameters, mshv::hv_register_x64_cpuid_result_parameters { leaf => input, eax => result }
        call::MsrResultParameters, mshv::hv_register_x64_msr_result_parameters { msr_index, access_type, action }
        call::AssertVirtualInterruptInput, mshv::hv_input_assert_virtual_interrupt {
            partition_id, control, destination_address => dest_addr, vector, target_vtl,
        }
        call::SignalEventDirectInput, mshv::hv_input_signal_event_direct {
            target_partition, target_vp, target_vtl, target_sint, flag_number,
        }
        call::SignalEventDirectOutput, mshv::hv_output_signal_event_direct { newly_signaled }
        call::PostMessageDirectInput, mshv::hv_input_post_message_direct {
            partition_id, vp_index, vtl, sint_index, message,
        }
        call::StimerState, mshv::hv_stimer_state { flags, config, count, adjustment, undelivered_expiration_time => undelivered_exp_time }
        call::SyntheticTimersState, mshv::hv_synthetic_timers_state { timers, reserved }
        parterre_abi::synic::PortInfo, mshv::hv_port_info { port_type }
        property::VmmCapabilities, mshv::hv_partition_property_vmm_capabilities { bank_count }
    }
}

/// `mshv-bindings` lacks these; the offsets are Linux' (`include/hyperv/hvhdk.h`, `hvhdk_mini.h`).
#[test]
fn hypercalls_of_the_kernel_only() {
    use parterre_abi::{device_interrupt as device, stats, synic};
    assert_eq!(offset_of!(call::CreatePartitionInput, proximity_domain_info), 0x08);
    assert_eq!(offset_of!(call::CreatePartitionInput, compatibility_version), 0x10);
    assert_eq!(offset_of!(call::CreatePartitionInput, disabled_processor_features0), 0x18);
    assert_eq!(offset_of!(call::CreatePartitionInput, disabled_processor_xsave_features), 0x28);
    assert_eq!(offset_of!(call::CreatePartitionInput, isolation_properties), 0x30);
    assert_eq!(offset_of!(call::CreateVpInput, subnode_type), 0x0F);
    assert_eq!(offset_of!(call::CreateVpInput, flags), 0x20);
    assert_eq!(offset_of!(call::MapGpaPagesInput, map_flags), 0x10);
    assert_eq!(offset_of!(call::MapVpStatePageInput, page_type), 0x0C);
    assert_eq!(offset_of!(call::MapVpStatePageInput, input_vtl), 0x0E);
    assert_eq!(offset_of!(call::MapVpStatePageInput, flags), 0x0F);
    assert_eq!(offset_of!(call::GetVpStateInput, input_vtl), 0x0C);
    assert_eq!(offset_of!(call::GetVpStateInput, state_type), 0x10);
    assert_eq!(offset_of!(call::GetVpStateInput, xsave_states), 0x20);
    assert_eq!(offset_of!(call::CreatePortInput, connection_partition_id), 0x10);
    assert_eq!(offset_of!(call::CreatePortInput, port_info), 0x18);
    assert_eq!(offset_of!(call::CreatePortInput, proximity_domain_info), 0x30);
    assert_eq!(offset_of!(call::ConnectPortInput, port_id), 0x18);
    assert_eq!(offset_of!(call::ConnectPortInput, connection_info), 0x20);
    assert_eq!(offset_of!(call::ConnectPortInput, proximity_domain_info), 0x40);
    assert_eq!(offset_of!(call::DispatchVpInput, time_slice), 0x10);
    assert_eq!(offset_of!(call::MapDeviceInterruptInput, logical_interrupt_entry), 0x18);
    assert_eq!(offset_of!(call::MapDeviceInterruptInput, interrupt_descriptor), 0x28);
    assert_eq!(offset_of!(call::UnmapDeviceInterruptInput, flags), 0x20);
    assert_eq!(offset_of!(call::RetargetDeviceInterruptInput, interrupt_target), 0x28);
    assert_eq!(offset_of!(device::DeviceInterruptDescriptor, target), 0x10);
    assert_eq!(offset_of!(device::DeviceInterruptTarget, vp_set), 0x08);
    assert_eq!(offset_of!(stats::StatsObjectIdentity, area_type), 15);
    assert_eq!(offset_of!(synic::EventRing, data), 4);
    assert_eq!(offset_of!(msg::VpSignalBitsetSchedulerMessage, vp_set), 16);
    assert_eq!(offset_of!(msg::VpSignalPairSchedulerMessage, vp_indexes), 160);
    assert_eq!(offset_of!(vp_page::VpAssistPage, nested_enlightenments_control), 32);
    assert_eq!(offset_of!(vp_page::VpAssistPage, intercept_message), 112);
}
