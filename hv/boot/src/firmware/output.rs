//! Messages to people: each line goes to the firmware's console and to the serial line.
//!
//! Where the firmware mirrors its console on that same serial line, the line is written once.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU16, Ordering};

use parterre_boot::console;
use uefi::proto::console::text::Output;
use uefi::proto::device_path::DevicePath;
use uefi::runtime::{self, VariableVendor};
use uefi::{Identify, boot, cstr16, system};

use super::memory;
use super::serial::Serial;

/// I/O port of the serial line, 0 for none.
static PORT: AtomicU16 = AtomicU16::new(0);
/// The port on which the firmware's console comes out already, 0 for none.
static MIRRORED: AtomicU16 = AtomicU16::new(0);

/// COM1: where a message goes that must be read and for which no port is configured yet.
const DEFAULT_PORT: u16 = 0x3f8;

/// Prints one line.
macro_rules! say {
    ($($arguments:tt)*) => { $crate::firmware::output::line(format_args!($($arguments)*)) };
}
pub(crate) use say;

/// Sends messages to the serial line at `port` from now on.
pub fn set_serial(port: Option<u16>) {
    let Some(port) = port else { return };
    PORT.store(port, Ordering::Relaxed);
    if is_mirrored(port) {
        MIRRORED.store(port, Ordering::Relaxed);
    } else {
        Serial::new(port).initialize();
    }
}

/// Makes sure that what follows appears on a serial line, if there is one and none was configured.
pub fn require_serial() {
    if PORT.load(Ordering::Relaxed) == 0 && Serial::new(DEFAULT_PORT).is_present() {
        set_serial(Some(DEFAULT_PORT));
    }
}

/// Prints one line of the program's.
pub fn line(message: fmt::Arguments<'_>) {
    let console = memory::has_boot_services();
    if console {
        // A console that fails to print cannot be told so.
        let _ = system::with_stdout(|out| writeln!(out, "parterre: {message}"));
    }
    let port = PORT.load(Ordering::Relaxed);
    if port != 0 && !(console && MIRRORED.load(Ordering::Relaxed) == port) {
        let _ = writeln!(Serial::new(port), "parterre: {message}");
    }
}

/// Whether the firmware's console comes out of `port`: its variable `ConOut` says so, and the device is there.
fn is_mirrored(port: u16) -> bool {
    let Ok((paths, _)) = runtime::get_variable_boxed(cstr16!("ConOut"), &VariableVendor::GLOBAL_VARIABLE)
    else {
        return false;
    };
    console::leads_to_port(&paths, port) && text_output_exists(port)
}

fn text_output_exists(port: u16) -> bool {
    let Ok(handles) = boot::locate_handle_buffer(boot::SearchType::ByProtocol(&Output::GUID)) else {
        return false;
    };
    handles.iter().any(|handle| {
        memory::peek::<DevicePath>(*handle).is_some_and(|path| console::leads_to_port(path.as_bytes(), port))
    })
}
