//! Watching over one worker: its reports become the state of its virtual machine, its end becomes `Off`.

use parterre_api::worker::{WorkerPhase, WorkerRequest, WorkerStatus};
use parterre_api::{OffReason, VmState};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::process::Process;

/// What may be asked of a worker's supervisor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Pass a request on to the worker.
    Request(WorkerRequest),
    /// End the process.
    Kill,
}

/// The connection to a worker.
pub(crate) struct Link {
    pub(crate) process: Process,
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Link {
    /// A link over a control connection.
    pub(crate) fn new(process: Process, stream: UnixStream) -> Link {
        let (reader, writer) = stream.into_split();
        Link { process, lines: BufReader::new(reader).lines(), writer }
    }

    /// The next report; `None` when the worker has closed the connection or talks nonsense.
    pub(crate) async fn report(&mut self) -> Option<WorkerStatus> {
        parse(self.lines.next_line().await)
    }
}

fn parse(line: std::io::Result<Option<String>>) -> Option<WorkerStatus> {
    serde_json::from_str(&line.ok()??).ok()
}

/// The state that a report means.
pub(crate) fn state_of(phase: &WorkerPhase) -> VmState {
    match phase {
        WorkerPhase::Starting { step } => VmState::Starting { step: step.clone() },
        WorkerPhase::Running { resets } => VmState::Running { resets: *resets },
        WorkerPhase::Paused { resets } => VmState::Paused { resets: *resets },
        // The worker still has to end; the state becomes Off when it has.
        WorkerPhase::Ended(_) => VmState::Stopping,
    }
}

/// Runs until the worker has ended; tells each report to `publish`. Returns why the virtual machine is off.
pub(crate) async fn supervise(
    mut link: Link,
    mut orders: mpsc::Receiver<Order>,
    mut publish: impl FnMut(&WorkerStatus),
) -> OffReason {
    let mut last_word = None;
    loop {
        // Both branches may be dropped half-way and lose nothing.
        tokio::select! {
            line = link.lines.next_line() => match parse(line) {
                Some(status) => {
                    publish(&status);
                    if let WorkerPhase::Ended(reason) = status.phase {
                        last_word = Some(reason);
                    }
                }
                None => break,
            },
            Some(order) = orders.recv() => match order {
                Order::Kill => link.process.kill(),
                Order::Request(request) => send(&mut link.writer, request).await,
            },
        }
    }
    // The connection is closed; the process may take a moment to go.
    let how = loop {
        tokio::select! {
            how = link.process.ended() => break how,
            Some(order) = orders.recv() => if let Order::Kill = order { link.process.kill() },
        }
    };
    last_word.unwrap_or(OffReason::WorkerEnded { how })
}

async fn send(writer: &mut OwnedWriteHalf, request: WorkerRequest) {
    if let Ok(mut line) = serde_json::to_vec(&request) {
        line.push(b'\n');
        // A worker that is gone is noticed by its end.
        let _ = writer.write_all(&line).await;
    }
}
