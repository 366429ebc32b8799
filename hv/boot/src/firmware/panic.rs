//! A panic: a defect of Parterre. While boot services are there, the firmware gets the machine back; then the machine
//! layer says its last words.

use core::panic::PanicInfo;
use core::ptr;

use uefi::{Status, boot};

use super::memory::has_boot_services;
use super::output::{require_serial, say};

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if !has_boot_services() {
        parterre_hw::panic::report(info);
    }
    require_serial();
    say!("panic: {info}");
    // SAFETY: the image is this program's own, and there is no exit data. Nothing of ours runs after it.
    let _ = unsafe { boot::exit(boot::image_handle(), Status::ABORTED, 0, ptr::null_mut()) };
    loop {
        core::hint::spin_loop();
    }
}
