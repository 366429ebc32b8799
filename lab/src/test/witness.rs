//! What a box says of itself when a test failed in it: which threads of the workers wait for what, which counters of
//! virtual processors still move, and the end of the kernel's log. Only what the parent itself can tell; where its
//! processors stand is told by the emulator (`--logs`).

use std::time::Duration;

use crate::session::{Outcome, Session};
use crate::tool;

/// For a box that still answers this is plenty.
const LIMIT: Duration = Duration::from_secs(30);
/// Lines of the report that are shown.
const LINES: usize = 120;

/// Prints, in the parent's shell, what the box is doing. Counters are read twice and only shown where they moved: a
/// virtual processor that does nothing shows nothing.
const REPORT: &str = r#"
parterre vm list
for p in $(pidof vmwp); do
    echo "worker $p: $(tr '\0' ' ' </proc/$p/cmdline | cut -c1-120)"
    for t in /proc/$p/task/*; do
        echo "  $(cat $t/comm): $(grep State $t/status | cut -c8-) in $(cat $t/wchan), system call $(cut -d' ' -f1 $t/syscall)"
    done
done
counters() { for f in /sys/kernel/debug/mshv/partition/*/vp/*/stats; do sed "s|^|$(echo $f | cut -d/ -f7-9) |" $f; done; }
counters >/tmp/witness-1 2>/dev/null; sleep 2; counters >/tmp/witness-2 2>/dev/null
echo "counters of virtual processors that moved in 2 s:"
awk 'NR == FNR { old[$1 $2] = $NF; next } old[$1 $2] != $NF { print "  " $0 " (+" $NF - old[$1 $2] ")" }' /tmp/witness-1 /tmp/witness-2
echo "the kernel's log:"
dmesg | tail -20
"#;

/// The report, or why there is none.
pub fn report(session: &mut Session) -> String {
    if !session.alive() {
        return "    The box has ended.".to_owned();
    }
    match session.shell(REPORT, LIMIT) {
        Ok(run) if run.outcome == Outcome::Exit(0) => tool::tail(&run.stdout, LINES),
        Ok(run) => {
            format!("    The box does not answer ({:?}):\n{}", run.outcome, tool::tail(&run.stdout, LINES))
        }
        Err(e) => format!("    The box cannot be asked: {e}"),
    }
}
