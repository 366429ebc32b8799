//! What a guest must not be able to do: reach memory that is not its own, use the processor's virtualization, change what
//! the hypervisor keeps in MSRs, or make hypercalls that are not for guests. Everything here is tried; all of it has to be
//! refused, and none of it may stop the machine.

#![no_std]
#![no_main]

mod hypercalls;
mod instructions;
mod memory;
mod msrs;
mod secrets;

use hypercalls::*;
use instructions::*;
use memory::*;
use msrs::*;
use secrets::*;

tmk::program!("isolation":
    new_memory_holds_no_secrets,
    memory_takes_secrets,
    memory_beyond_ram_reads_as_nothing,
    memory_beyond_ram_keeps_no_write,
    ram_is_untouched,
    overlays_beyond_ram_are_harmless,
    page_tables_beyond_ram_are_harmless,
    apic_hole_is_harmless,
    reserved_address_bits_fault,
    ports_are_harmless,
    svm_instructions_fault,
    vmx_instructions_fault,
    svm_cannot_be_enabled,
    system_management_instructions_fault,
    performance_counters_fault,
    monitor_and_mwait_do_not_hang,
    bad_xsetbv_faults,
    privileged_instructions_fault_in_user_mode,
    hypervisor_calls_by_instruction_are_harmless,
    bad_values_of_processor_msrs_fault,
    read_only_msrs_fault,
    every_msr_survives_bad_values,
    hypercalls_need_an_identity,
    hypercalls_for_the_parent_are_denied,
    every_hypercall_with_zeroes,
    every_hypercall_about_itself,
    every_hypercall_with_ones,
    every_hypercall_fast,
    every_hypercall_with_bad_addresses,
    every_hypercall_as_rep,
    hypercalls_fault_in_user_mode,
    vmx_cannot_be_enabled,
    bits_of_cr4_that_cpuid_does_not_tell_of_fault,
    bits_of_cr4_that_cpuid_tells_of_can_be_set,
    reserved_bits_of_cr3_fault,
    own_secrets_are_untouched,
    no_foreign_secrets_appear,
);
