# How a program starts: by the Linux boot protocol, in real mode (as QEMU enters a kernel through its firmware), in
# 32-bit mode, or in 64-bit mode (as most VMMs do). Documentation/arch/x86/boot.rst names all offsets. (Differences
# of labels are written in AT&T syntax; the assembler's Intel syntax cannot express them.)

# ---- The setup part: header, and the way from real mode -------------------------------------------------------------
.section .setup, "ax"
.code16
tmk_setup:
.org 0x1F1
    .byte 7                     # setup_sects: 7 behind the first
    .word 0                     # root_flags
    .long tmk_syssize           # in 16 bytes
    .word 0                     # ram_size
    .word 0xFFFF                # vid_mode: normal
    .word 0                     # root_dev
    .word 0xAA55
    .byte 0xEB, 0x6A            # jump to 0x26C, which also tells the header's end
    .ascii "HdrS"
    .word 0x020F                # version
    .long 0                     # realmode_swtch
    .word 0                     # start_sys_seg
    .word 0                     # kernel_version
    .byte 0                     # type_of_loader
    .byte 1                     # loadflags: LOADED_HIGH
    .word 0                     # setup_move_size
    .long 0x100000              # code32_start
    .long 0, 0                  # ramdisk
    .long 0                     # bootsect_kludge
    .word 0                     # heap_end_ptr
    .byte 0, 0                  # ext_loader_ver, ext_loader_type
    .long 0                     # cmd_line_ptr
    .long 0x7FFFFFFF            # initrd_addr_max
    .long 0x100000              # kernel_alignment
    .byte 0                     # relocatable_kernel
    .byte 20                    # min_alignment
    .word 1                     # xloadflags: XLF_KERNEL_64
    .long 2047                  # cmdline_size
    .long 0                     # hardware_subarch
    .quad 0                     # hardware_subarch_data
    .long 0, 0                  # payload
    .quad 0                     # setup_data
    .quad 0x100000              # pref_address
    .long tmk_init_size         # init_size
    .long 0                     # handover_offset
    .long 0                     # kernel_info_offset
.org 0x26C
    jmp setup_code

# The memory map is stored where boot_params has it: count at 0x1E8, entries from 0x2D0 up to 0xCD0.
.org 0xD00
setup_code:
    cli
    cld
    mov ax, ds
    mov es, ax
    mov byte ptr ds:[0x1E8], 0
    xor ebx, ebx
    mov di, 0x2D0
1:  mov eax, 0xE820
    mov ecx, 20
    mov edx, 0x534D4150
    int 0x15
    jc 2f
    cmp eax, 0x534D4150
    jne 2f
    inc byte ptr ds:[0x1E8]
    add di, 20
    test ebx, ebx
    jz 2f
    cmp byte ptr ds:[0x1E8], 100
    jb 1b
2:  cli
    in al, 0x92                 # address line 20
    or al, 2
    and al, 0xFE
    out 0x92, al
    xor esi, esi
    mov si, ds
    shl esi, 4                  # where boot_params lies: here
    mov ecx, esi
.att_syntax
    addl $(setup_gdt - tmk_setup), %ecx
    movl %ecx, (setup_gdtr - tmk_setup + 2)
    lgdtl (setup_gdtr - tmk_setup)
.intel_syntax noprefix
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xEA            # far jump to the 32-bit entry
    .long 0x100000
    .word 0x10

.balign 8
setup_gdt:
    .quad 0, 0
    .quad 0x00CF9B000000FFFF
    .quad 0x00CF93000000FFFF
setup_gdtr:
    .word 31
    .long 0

# ---- The 32-bit entry: on to long mode, with 4 GiB mapped -----------------------------------------------------------
.section .head, "ax"
.code32
tmk_startup_32:
    cli
    cld
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, offset early_pml4
    xor eax, eax
    mov ecx, 6 * 1024
    rep stosd
    mov eax, offset early_pdpt + 7
    mov dword ptr [early_pml4], eax
    mov eax, offset early_pd + 7
    mov edi, offset early_pdpt
    mov ecx, 4
1:  mov dword ptr [edi], eax
    add eax, 4096
    add edi, 8
    dec ecx
    jnz 1b
    mov eax, 0x87
    mov edi, offset early_pd
    mov ecx, 2048
2:  mov dword ptr [edi], eax
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 2b
    mov eax, offset early_pml4
    mov cr3, eax
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    lgdt [early_gdtr]
    mov eax, cr0
    or eax, 0x80000001
    mov cr0, eax
    .byte 0xEA
    .long tmk_startup_64
    .word 0x10

.balign 8
early_gdt:
    .quad 0, 0
    .quad 0x00AF9B000000FFFF
    .quad 0x00CF93000000FFFF
early_gdtr:
    .word 31
    .quad early_gdt

# ---- The 64-bit entry, at 0x200 by the protocol. RSI: boot_params ----------------------------------------------------
.org 0x200
.code64
.globl tmk_startup_64
tmk_startup_64:
    cli
    cld
    lea rax, [rip + tmk_startup_32]
    mov edi, 0x100000
    cmp rax, rdi
    je 1f
    mov r8, rsi                 # loaded elsewhere: move to where it was linked for
    mov rsi, rax
    mov ecx, offset tmk_image_size
    rep movsb
    mov rsi, r8
    mov eax, offset relocated
    jmp rax
relocated:
1:  mov esp, offset tmk_boot_stack_top
    lgdt [rip + early_gdtr]
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, offset tmk_bss
    mov ecx, offset tmk_bss_end
    sub ecx, edi
    xor eax, eax
    rep stosb
    mov rdi, rsi
    call tmk_start
2:  hlt
    jmp 2b

# ---- Application processors: copied to 0x8000, entered by a start-up IPI ---------------------------------------------
.section .rodata.trampoline, "a"
.globl tmk_trampoline
.globl tmk_trampoline_cr3
.globl tmk_trampoline_end
.balign 16
.code16
tmk_trampoline:
    cli
    cld
    xor ax, ax
    mov ds, ax
.att_syntax
    lgdtl (0x8000 + trampoline_gdtr - tmk_trampoline)
.intel_syntax noprefix
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xEA
    .long 0x8000 + trampoline_32 - tmk_trampoline
    .word 0x08
.code32
trampoline_32:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
.att_syntax
    movl (0x8000 + tmk_trampoline_cr3 - tmk_trampoline), %eax
.intel_syntax noprefix
    mov cr3, eax
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80010033         # PG, WP, NE, ET, MP, PE; caches on
    mov cr0, eax
    .byte 0xEA
    .long 0x8000 + trampoline_64 - tmk_trampoline
    .word 0x18
.code64
trampoline_64:
    mov eax, offset tmk_ap_entry
    jmp rax
.balign 8
trampoline_gdt:
    .quad 0
    .quad 0x00CF9B000000FFFF
    .quad 0x00CF93000000FFFF
    .quad 0x00AF9B000000FFFF
trampoline_gdtr:
    .word 31
    .long 0x8000 + trampoline_gdt - tmk_trampoline
.balign 8
tmk_trampoline_cr3:
    .quad 0
tmk_trampoline_end:

.section .text.tmk, "ax"
tmk_ap_entry:
    mov edi, 1
    lock xadd dword ptr [rip + tmk_ap_count], edi
    inc edi                     # its index: processors are counted from the boot processor, 0
    mov eax, edi
    shl rax, 14                 # 16 KiB of stack each
    lea rsp, [rax + tmk_ap_stacks]
    call tmk_ap_start
1:  hlt
    jmp 1b

# ---- Exceptions and interrupts ---------------------------------------------------------------------------------------
# One stub for each vector, 16 bytes apart. Those without an error code push 0 for it.
.globl tmk_stubs
.balign 16
tmk_stubs:
vector = 0
.rept 256
    .balign 16
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30))
    push 0
    .endif
    push vector
    jmp common_stub
    vector = vector + 1
.endr

common_stub:
    cld
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    mov rbx, rsp
    and rsp, -16
    call tmk_interrupt
    mov rsp, rbx
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

# tmk_try(function, argument, recovery): calls function(argument). Answers 0 if it came back, 1 if an exception
# ended it: then the handler has resumed at `recovery`'s second word with its first as stack pointer.
.globl tmk_try
tmk_try:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov qword ptr [rdx], rsp
    lea rax, [rip + 1f]
    mov qword ptr [rdx + 8], rax
    mov rax, rdi
    mov rdi, rsi
    sub rsp, 8
    call rax
    add rsp, 8
    xor eax, eax
    jmp 2f
1:  mov eax, 1
2:  pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# tmk_try_user(function, stack, recovery): runs function at CPL 3 until an exception or INT 0x80 ends it.
.globl tmk_try_user
tmk_try_user:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov qword ptr [rdx], rsp
    lea rax, [rip + 1b]
    mov qword ptr [rdx + 8], rax
    push 0x2B                   # SS
    push rsi                    # RSP
    push 0x2                    # RFLAGS: interrupts off, no I/O privilege
    push 0x23                   # CS
    push rdi                    # RIP
    iretq

.section .early, "aw", @nobits
.balign 4096
early_pml4: .skip 4096
early_pdpt: .skip 4096
early_pd: .skip 16384

.section .bss.tmk, "aw", @nobits
.balign 16
    .skip 32768
tmk_boot_stack_top:
.balign 16
tmk_ap_stacks: .skip 81 * 16384
.globl tmk_ap_count
tmk_ap_count: .skip 4
