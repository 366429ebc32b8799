//! What a worker can no longer do once it is in its sandbox. Each test runs in a process of its own, started anew from
//! this test program, because the sandbox cannot be left.

use std::process::Command;

/// Names the check that the child process is to make.
const VARIABLE: &str = "PARTERRE_SANDBOX_CHECK";

#[test]
fn inside() {
    let Ok(check) = std::env::var(VARIABLE) else { return };
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let (stream, _) = std::os::unix::net::UnixStream::pair().unwrap();
    parterre_worker::sandbox::enter().unwrap();
    let outcome = match check.as_str() {
        "open" => std::fs::File::open("/etc/passwd").map(drop),
        "create" => std::fs::File::create("/tmp/parterre-sandbox-test").map(drop),
        "run" => Command::new("/bin/true").status().map(drop),
        "connect" => std::net::TcpStream::connect("127.0.0.1:1").map(drop),
        // A request to a terminal that is not one that the worker makes.
        "terminal" => rustix::termios::tcgetwinsize(&file).map(drop).map_err(Into::into),
        "list" => std::fs::read_dir("/").map(drop),
        // Not even to see whether the other process is there.
        "signal" => rustix::process::test_kill_process(rustix::process::Pid::INIT).map_err(Into::into),
        // What a worker does need.
        "thread" => {
            std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_millis(1))).join().unwrap();
            Ok(())
        }
        "read" => {
            use std::io::Read;
            let mut byte = [0];
            (&file).read_exact(&mut byte)
        }
        "nonblocking" => stream.set_nonblocking(true),
        other => panic!("unknown check {other}"),
    };
    let code = match outcome {
        Ok(()) => 0,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => 42,
        Err(error) => panic!("{error}"),
    };
    std::process::exit(code);
}

fn check(name: &str) -> Option<i32> {
    let program = std::env::current_exe().unwrap();
    let status = Command::new(program)
        .args(["--exact", "inside", "--nocapture"])
        .env(VARIABLE, name)
        .status()
        .unwrap();
    status.code()
}

#[test]
fn nothing_can_be_opened_started_or_connected() {
    for name in ["open", "create", "run", "connect", "terminal", "list", "signal"] {
        assert_eq!(check(name), Some(42), "{name}");
    }
}

#[test]
fn threads_and_open_files_still_work() {
    for name in ["thread", "read", "nonblocking"] {
        assert_eq!(check(name), Some(0), "{name}");
    }
}
