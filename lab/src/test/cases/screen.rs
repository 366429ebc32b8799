//! The screen of a guest: what it draws the parent sees.

use std::io::Cursor;

use anyhow::{Context, Result, ensure};

use super::balloon::ask;
use super::succeed;
use super::vm::{PROMPT, USERLAND, console, remove};
use crate::session::Session;
use crate::test::{Case, Check, Setting, USUAL};

/// Cloud kernels have no driver for screens.
const GENERAL: Setting = Setting { guest: "newest-general", ..USUAL };

pub const CASES: &[Case] = &[Case { name: "vm::screen", setting: GENERAL, check: Check::Shared(screen) }];

const NAME: &str = "screen";
const CREATE: &str = "parterre vm create screen --memory 512M --kernel /lab/guest-kernel --initrd /lab/guest-initrd \
                      --cmdline 'console=ttyS0 quiet'";
/// Loads the driver and waits for its console; the cursor would be in the picture.
const DRIVER: &str = "modprobe hyperv_drm; while [ ! -e /dev/fb0 ]; do sleep 1; done; \
                      echo 0 >/sys/class/graphics/fbcon/cursor_blink";
/// Size of the screen that a guest begins with.
const SIZE: (u32, u32) = (1024, 768);

fn screen(session: &mut Session) -> Result<()> {
    start(session)?;
    draws(session, 1)?;
    comes_back(session)?;
    restarts(session)?;
    remove(session, NAME)
}

/// The driver lets go of the screen, and takes it again.
fn comes_back(session: &mut Session) -> Result<()> {
    const DRIVER: &str = "cd /sys/bus/vmbus/drivers/hyperv_drm; device=$(ls | grep -- -)";
    ask(session, NAME, &format!("{DRIVER}; echo $device >unbind; cd /; [ ! -e /dev/fb0 ]"), 11)?;
    shows_nothing(session)?;
    let bind = "cd /sys/bus/vmbus/drivers/hyperv_drm; echo $device >bind; cd /";
    ask(session, NAME, bind, 12)?;
    draws(session, 13)
}

/// The guest starts anew, in the same worker: its screen is dark until its driver comes, and then as the first time.
fn restarts(session: &mut Session) -> Result<()> {
    let again = "echo again-$((6 * 7)); reboot\n";
    console(session, NAME, &[(PROMPT, again), ("again-42", ""), (USERLAND, ""), (PROMPT, "")])?;
    shows_nothing(session)?;
    draws(session, 21)?;
    // A panic, after which nothing was put in order.
    let panic = "echo 1 >/proc/sys/kernel/panic; echo again-$((6 * 9)); echo c >/proc/sysrq-trigger\n";
    console(session, NAME, &[("", "\n"), (PROMPT, panic), ("again-54", ""), (USERLAND, ""), (PROMPT, "")])?;
    shows_nothing(session)?;
    draws(session, 31)
}

fn start(session: &mut Session) -> Result<()> {
    succeed(session, CREATE)?;
    succeed(session, "parterre vm start screen")?;
    console(session, NAME, &[(USERLAND, ""), (PROMPT, "")])?;
    shows_nothing(session)
}

fn shows_nothing(session: &mut Session) -> Result<()> {
    let run = session.shell("parterre vm screenshot screen /tmp/screen.png", super::LIMIT)?;
    ensure!(run.stderr.contains("hyperv_drm"), "A screen without a driver: {}{}", run.stdout, run.stderr);
    Ok(())
}

/// Letters on the guest's console, then its upper half white.
fn draws(session: &mut Session, number: u32) -> Result<()> {
    ask(session, NAME, DRIVER, number)?;
    ask(session, NAME, "echo; echo 'letters on the screen' >/dev/tty1; sleep 1", number + 1)?;
    let lit = picture(session)?.iter().filter(|byte| **byte != 0).count();
    let all = (SIZE.0 * SIZE.1 * 3) as usize;
    ensure!((100..all / 4).contains(&lit), "{lit} of {all} bytes are lit where there should be letters.");
    let half = all / 2;
    // Four bytes for a pixel in the guest, three in the picture.
    let white = format!("tr '\\0' '\\377' </dev/zero | head -c {} >/dev/fb0; sleep 1", half / 3 * 4);
    ask(session, NAME, &format!("printf '\\033[2J' >/dev/tty1; {white}"), number + 2)?;
    let picture = picture(session)?;
    let wrong = picture[..half].iter().filter(|byte| **byte != 255).count()
        + picture[half..].iter().filter(|byte| **byte != 0).count();
    ensure!(wrong == 0, "{wrong} of {all} bytes are not what the guest has drawn.");
    Ok(())
}

/// What the guest shows: red, green and blue of each pixel.
fn picture(session: &mut Session) -> Result<Vec<u8>> {
    succeed(session, "parterre vm screenshot screen /tmp/screen.png")?;
    let hex = succeed(session, "hexdump -v -e '1/1 \"%02x\"' /tmp/screen.png")?;
    let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
    let file: Vec<u8> = digits.as_chunks().0.iter().map(|[high, low]| (high << 4 | low) as u8).collect();
    let mut reader = png::Decoder::new(Cursor::new(file)).read_info()?;
    let size = (reader.info().width, reader.info().height);
    ensure!(size == SIZE, "The screen has {} by {} pixels.", size.0, size.1);
    let mut bytes = vec![0; reader.output_buffer_size().context("The picture is too large.")?];
    reader.next_frame(&mut bytes)?;
    Ok(bytes)
}
