//! The configuration file `\parterre\parterre.conf`.
//!
//! Lines `key = value`; a line that begins with `#` is a comment, an empty line nothing. A value reaches to the end
//! of its line, so a command line may hold `=` and `#`. Paths are on the EFI system partition that the program was
//! loaded from; slashes and backslashes mean the same.
//!
//! | key | value |
//! |---|---|
//! | `kernel` | the parent's kernel, a bzImage; required |
//! | `initrd` | its initial RAM disk |
//! | `kernel-crc32`, `initrd-crc32` | CRC-32 of the file (as zip, gzip and UEFI have it), eight hexadecimal digits |
//! | `cmdline` | its command line |
//! | `serial` | I/O port of a 16550 for the hypervisor's messages (`0x3f8`), or `none`, which is the default |
//! | `symbols` | the file of the hypervisor's symbols, for traces |
//! | `mode` | `parterre` (default), or `bare`: the same kernel started the same way with no hypervisor below |

use alloc::string::{String, ToString};
use core::fmt;

/// Where the file lies on the EFI system partition.
pub const PATH: &str = "\\parterre\\parterre.conf";

/// The longest file that is read, in bytes.
pub const MAX_LENGTH: usize = 64 << 10;

const KEYS: &str = "kernel, kernel-crc32, initrd, initrd-crc32, cmdline, serial, symbols and mode";

/// What is to be started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The hypervisor, with the kernel as its parent partition.
    #[default]
    Parterre,
    /// The kernel alone on the bare machine.
    Bare,
}

/// The content of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Path of the parent's kernel, with backslashes, from the partition's root.
    pub kernel: String,
    /// CRC-32 that the kernel's file must have.
    pub kernel_crc32: Option<u32>,
    /// Path of the initial RAM disk.
    pub initrd: Option<String>,
    /// CRC-32 that the initial RAM disk's file must have.
    pub initrd_crc32: Option<u32>,
    /// The parent's command line.
    pub cmdline: String,
    /// I/O port of the serial line.
    pub serial: Option<u16>,
    /// Path of the file of symbols.
    pub symbols: Option<String>,
    /// What is to be started.
    pub mode: Mode,
}

/// What is wrong with the file, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Line, from 1; 0 when it is the file as a whole.
    pub line: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(out, "{PATH}: {}", self.message),
            line => write!(out, "{PATH}, line {line}: {}", self.message),
        }
    }
}

/// Reads the file's content.
///
/// # Errors
/// The first thing wrong: not UTF-8 text, too long, a line that is no `key = value`, an unknown or repeated key, a
/// value that does not fit its key, no `kernel`.
pub fn parse(bytes: &[u8]) -> Result<Config, ConfigError> {
    let whole = |message: &str| ConfigError { line: 0, message: message.to_string() };
    if bytes.len() > MAX_LENGTH {
        return Err(whole("the file is longer than 64 KiB, so it is no configuration file; write it anew"));
    }
    let text = core::str::from_utf8(bytes)
        .map_err(|_| whole("the file is not UTF-8 text; it may be damaged, write it anew"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);

    let mut values = Values::default();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        values.take(line).map_err(|message| ConfigError { line: index + 1, message })?;
    }
    values.finish().ok_or_else(|| whole("no kernel is named; add a line like `kernel = \\parterre\\vmlinuz`"))
}

/// The values seen so far; `None` is "not yet".
#[derive(Default)]
struct Values {
    kernel: Option<String>,
    kernel_crc32: Option<u32>,
    initrd: Option<String>,
    initrd_crc32: Option<u32>,
    cmdline: Option<String>,
    serial: Option<Option<u16>>,
    symbols: Option<String>,
    mode: Option<Mode>,
}

impl Values {
    fn take(&mut self, line: &str) -> Result<(), String> {
        let Some((key, value)) = line.split_once('=') else {
            return Err(alloc::format!(
                "{:?} is not of the form `key = value`; correct the line or begin it with #",
                shortened(line)
            ));
        };
        let (key, value) = (key.trim(), value.trim());
        match key {
            "kernel" => set(&mut self.kernel, key, path(key, value)?),
            "kernel-crc32" => set(&mut self.kernel_crc32, key, crc32(key, value)?),
            "initrd-crc32" => set(&mut self.initrd_crc32, key, crc32(key, value)?),
            "initrd" => set(&mut self.initrd, key, path(key, value)?),
            "cmdline" => set(&mut self.cmdline, key, command_line(value)?),
            "serial" => set(&mut self.serial, key, port(value)?),
            "symbols" => set(&mut self.symbols, key, path(key, value)?),
            "mode" => set(&mut self.mode, key, mode(value)?),
            _ => Err(alloc::format!("there is no key {:?}; the keys are {KEYS}", shortened(key))),
        }
    }

    fn finish(self) -> Option<Config> {
        Some(Config {
            kernel: self.kernel?,
            kernel_crc32: self.kernel_crc32,
            initrd: self.initrd,
            initrd_crc32: self.initrd_crc32,
            cmdline: self.cmdline.unwrap_or_default(),
            serial: self.serial.flatten(),
            symbols: self.symbols,
            mode: self.mode.unwrap_or_default(),
        })
    }
}

fn set<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(alloc::format!("`{key}` is named a second time; keep one of the lines")),
    }
}

fn path(key: &str, value: &str) -> Result<String, String> {
    if value.is_empty() {
        return Err(alloc::format!("`{key}` needs the path of a file; name one or remove the line"));
    }
    // What the firmware's file system takes: UCS-2 without control characters.
    if value.chars().any(|c| c.is_control() || u32::from(c) > 0xffff) {
        return Err(alloc::format!(
            "the path of `{key}` holds a character that no file name can have; correct it"
        ));
    }
    let path = value.replace('/', "\\");
    Ok(if path.starts_with('\\') { path } else { alloc::format!("\\{path}") })
}

fn command_line(value: &str) -> Result<String, String> {
    match value.chars().find(|c| c.is_control()) {
        Some(c) => Err(alloc::format!("`cmdline` holds the control character {c:?}; remove it")),
        None => Ok(value.to_string()),
    }
}

fn port(value: &str) -> Result<Option<u16>, String> {
    if value == "none" {
        return Ok(None);
    }
    let number = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => value.parse(),
    };
    match number {
        // A 16550 has eight registers and begins at a multiple of eight.
        Ok(port) if port >= 8 && port % 8 == 0 => Ok(Some(port)),
        _ => Err(alloc::format!(
            "serial = {:?} is no I/O port of a serial line; write one like 0x3f8, or none",
            shortened(value)
        )),
    }
}

fn crc32(key: &str, value: &str) -> Result<u32, String> {
    let digits = value.len() == 8 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    u32::from_str_radix(value, 16).ok().filter(|_| digits).ok_or_else(|| {
        alloc::format!("{key} = {:?} is no CRC-32; write eight hexadecimal digits", shortened(value))
    })
}

fn mode(value: &str) -> Result<Mode, String> {
    match value {
        "parterre" => Ok(Mode::Parterre),
        "bare" => Ok(Mode::Bare),
        _ => Err(alloc::format!("mode = {:?} is unknown; write parterre or bare", shortened(value))),
    }
}

/// The beginning of something that may be garbage of any length.
fn shortened(text: &str) -> &str {
    let end = text.char_indices().nth(40).map_or(text.len(), |(at, _)| at);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_file_is_read() {
        let text = "# the parent\nkernel = /parterre/vmlinuz\r\n\n initrd=parterre\\initrd\n\
                    cmdline = console=ttyS0 a=# b\nserial = 0x3f8\nsymbols = \\parterre\\parterre.sym\nmode = bare\n";
        let config = parse(text.as_bytes()).unwrap();
        assert_eq!(config.kernel, "\\parterre\\vmlinuz");
        assert_eq!(config.initrd.as_deref(), Some("\\parterre\\initrd"));
        assert_eq!(config.cmdline, "console=ttyS0 a=# b");
        assert_eq!(config.serial, Some(0x3f8));
        assert_eq!(config.symbols.as_deref(), Some("\\parterre\\parterre.sym"));
        assert_eq!(config.mode, Mode::Bare);
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = parse("\u{feff}kernel = k".as_bytes()).unwrap();
        assert_eq!(config, Config { kernel: "\\k".into(), ..Config::default() });
        assert_eq!(config.mode, Mode::Parterre);
    }

    fn error(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn each_mistake_is_named_with_its_line() {
        assert!(
            error("kernel = a\nkernal = b")
                .contains("line 2: there is no key \"kernal\"; the keys are kernel")
        );
        assert!(error("kernel").contains("line 1: \"kernel\" is not of the form"));
        assert!(error("kernel = a\n\nkernel = b").contains("line 3: `kernel` is named a second time"));
        assert!(error("kernel =").contains("`kernel` needs the path"));
        assert!(error("kernel = a\u{1}b").contains("no file name can have"));
        assert!(error("kernel = a\u{1f600}").contains("no file name can have"));
        assert!(error("cmdline = a\u{7}b").contains("control character"));
        assert!(error("mode = fast").contains("write parterre or bare"));
        assert!(error("cmdline = a").contains("no kernel is named"));
        assert!(error("").contains("no kernel is named"));
    }

    #[test]
    fn a_serial_port_is_a_port() {
        let serial =
            |value: &str| parse(std::format!("kernel = k\nserial = {value}").as_bytes()).map(|c| c.serial);
        assert_eq!(serial("none"), Ok(None));
        assert_eq!(serial("1016"), Ok(Some(0x3f8)));
        assert_eq!(serial("0X2F8"), Ok(Some(0x2f8)));
        for bad in ["", "com1", "0x", "0", "0x3f9", "0x10000", "-8", "0x3f8 115200"] {
            assert!(serial(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_checksum_is_eight_digits() {
        let config = parse(b"kernel = k\nkernel-crc32 = 00c0FFEE\ninitrd-crc32=ffffffff").unwrap();
        assert_eq!((config.kernel_crc32, config.initrd_crc32), (Some(0xc0_ffee), Some(u32::MAX)));
        for bad in ["", "c0ffee", "0xc0ffee", "+0c0ffee", "00c0ffeeg", "000c0ffee"] {
            let line = std::format!("kernel = k\nkernel-crc32 = {bad}");
            assert!(error(&line).contains("line 2: kernel-crc32"), "{bad:?}");
        }
    }

    #[test]
    fn files_that_are_no_text_are_refused() {
        assert!(parse(&[0xff, 0xfe, 0]).unwrap_err().to_string().contains("not UTF-8"));
        assert!(parse(&alloc::vec![b'\n'; MAX_LENGTH + 1]).unwrap_err().to_string().contains("longer than"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Err(error) = parse(&bytes) {
                prop_assert!(error.to_string().len() < 400);
            }
        }

        #[test]
        fn any_value_survives(value in "[a-z=# ]{0,40}") {
            let config = parse(std::format!("kernel = k\ncmdline = {value}\n").as_bytes()).unwrap();
            prop_assert_eq!(config.cmdline, value.trim());
        }
    }
}
