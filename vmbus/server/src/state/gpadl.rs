//! GPADLs: memory that the guest shares under a handle, sent in a header and bodies.

use std::collections::BTreeMap;
use std::sync::Arc;

use parterre_vmbus_protocol::message::{
    GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown, Header, MessageType,
};
use parterre_vmbus_ring::Gpadl;

use super::{MessageError, Server};
use crate::bus::OfferId;

/// Most GPADLs of a guest, whole ones and those of which parts are missing.
const MAX_GPADLS: usize = 8192;
/// `STATUS_INVALID_PARAMETER`.
const INVALID_PARAMETER: u32 = 0xC000_000D;
/// `STATUS_INSUFFICIENT_RESOURCES`.
const INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;

enum State {
    /// Bytes that have come, of so many.
    Partial {
        bytes: Vec<u8>,
        length: usize,
        range_count: u16,
    },
    Whole(Arc<Gpadl>),
    /// To be given back as soon as nobody uses it.
    TearingDown,
}

struct Record {
    channel: u32,
    /// Page numbers that it may have, for the limit.
    pages: usize,
    state: State,
}

/// All GPADLs of a guest.
pub(super) struct Gpadls {
    records: BTreeMap<u32, Record>,
    pages: usize,
    max_pages: usize,
}

/// How the creation goes.
enum Progress {
    More,
    Created,
    Failed(u32),
}

impl Gpadls {
    pub(super) fn new(max_pages: usize) -> Gpadls {
        Gpadls { records: BTreeMap::new(), pages: 0, max_pages }
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.pages = 0;
    }

    /// A whole GPADL and the channel for which it was made.
    pub(super) fn get(&self, handle: u32) -> Option<(u32, Arc<Gpadl>)> {
        match self.records.get(&handle)? {
            Record { channel, state: State::Whole(gpadl), .. } => Some((*channel, gpadl.clone())),
            _ => None,
        }
    }

    pub(super) fn remove_of_channel(&mut self, channel: u32) {
        self.records.retain(|_, record| record.channel != channel);
        self.pages = self.records.values().map(|record| record.pages).sum();
    }

    #[cfg(test)]
    pub(super) fn is_within_limits(&self) -> bool {
        let pages = self.records.values().map(|record| record.pages).sum::<usize>();
        pages == self.pages && pages <= self.max_pages && self.records.len() <= MAX_GPADLS
    }

    fn remove(&mut self, handle: u32) {
        if let Some(record) = self.records.remove(&handle) {
            self.pages -= record.pages;
        }
    }

    /// Begins one. `Err` is a status for the guest.
    fn begin(&mut self, header: &GpadlHeader) -> Result<(), u32> {
        let (length, handle) = (usize::from(header.range_length), header.gpadl);
        if handle == 0 || header.range_count == 0 || self.records.contains_key(&handle) {
            return Err(INVALID_PARAMETER);
        }
        let pages = length / size_of::<u64>();
        if self.records.len() >= MAX_GPADLS || self.pages + pages > self.max_pages {
            return Err(INSUFFICIENT_RESOURCES);
        }
        self.pages += pages;
        let state = State::Partial { bytes: Vec::new(), length, range_count: header.range_count };
        self.records.insert(handle, Record { channel: header.channel_id, pages, state });
        Ok(())
    }

    /// Adds bytes to one that has begun, and drops it if that makes nonsense.
    fn append(&mut self, handle: u32, more: &[u8]) -> Progress {
        let Some(record) = self.records.get_mut(&handle) else { return Progress::Failed(INVALID_PARAMETER) };
        let State::Partial { bytes, length, range_count } = &mut record.state else {
            return Progress::Failed(INVALID_PARAMETER);
        };
        // Messages come in units of 8 bytes; what is too much at the end counts for nothing.
        bytes.extend_from_slice(&more[..more.len().min(*length - bytes.len())]);
        if bytes.len() < *length {
            return Progress::More;
        }
        let Some(gpadl) = Gpadl::parse(bytes, *range_count) else {
            self.remove(handle);
            return Progress::Failed(INVALID_PARAMETER);
        };
        record.state = State::Whole(Arc::new(gpadl));
        Progress::Created
    }
}

impl Server {
    pub(super) fn gpadl_header(&mut self, header: GpadlHeader, rest: &[u8]) -> Result<(), MessageError> {
        let number = header.channel_id;
        let known = self.channels.get(&number).is_some_and(|c| c.announced && !c.rescinded);
        if !known {
            self.gpadl_created(number, header.gpadl, INVALID_PARAMETER);
            return Err(MessageError::Channel(number));
        }
        let progress = match self.gpadls.begin(&header) {
            Ok(()) => self.gpadls.append(header.gpadl, rest),
            Err(status) => Progress::Failed(status),
        };
        self.gpadl_progress(number, header.gpadl, progress)
    }

    pub(super) fn gpadl_body(&mut self, body: GpadlBody, rest: &[u8]) -> Result<(), MessageError> {
        let handle = body.gpadl;
        let record = self.gpadls.records.get(&handle);
        let partial = record.filter(|record| matches!(record.state, State::Partial { .. }));
        let channel = partial.ok_or(MessageError::Gpadl(handle))?.channel;
        let progress = self.gpadls.append(handle, rest);
        self.gpadl_progress(channel, handle, progress)
    }

    fn gpadl_progress(&mut self, channel: u32, handle: u32, progress: Progress) -> Result<(), MessageError> {
        match progress {
            Progress::More => Ok(()),
            Progress::Created => {
                self.gpadl_created(channel, handle, 0);
                Ok(())
            }
            Progress::Failed(status) => {
                self.gpadl_created(channel, handle, status);
                Err(MessageError::Gpadl(handle))
            }
        }
    }

    fn gpadl_created(&mut self, channel_id: u32, gpadl: u32, status: u32) {
        let header = Header::new(MessageType::GPADL_CREATED);
        self.send(&GpadlCreated { header, channel_id, gpadl, status });
    }

    pub(super) fn gpadl_teardown(&mut self, message: GpadlTeardown) -> Result<(), MessageError> {
        let handle = message.gpadl;
        let record = self.gpadls.records.get_mut(&handle).ok_or(MessageError::Gpadl(handle))?;
        if matches!(record.state, State::TearingDown) {
            return Err(MessageError::Repeated(MessageType::GPADL_TEARDOWN));
        }
        record.state = State::TearingDown;
        let device = self.channels.get(&record.channel).map(|channel| channel.device);
        match device {
            Some(device) => self.finish_teardowns(device),
            None => self.torn_down(handle),
        }
        Ok(())
    }

    /// Gives back what is to be given back of a device's memory and no channel of it holds.
    pub(super) fn finish_teardowns(&mut self, device: OfferId) {
        let of_device = |record: &Record| {
            self.channels.get(&record.channel).is_some_and(|channel| channel.device == device)
        };
        let held = |handle: u32| self.channels.values().any(|c| c.device == device && c.holds(handle));
        let done: Vec<u32> = self
            .gpadls
            .records
            .iter()
            .filter(|(_, record)| matches!(record.state, State::TearingDown) && of_device(record))
            .map(|(handle, _)| *handle)
            .filter(|handle| !held(*handle))
            .collect();
        for handle in done {
            self.torn_down(handle);
        }
    }

    fn torn_down(&mut self, gpadl: u32) {
        self.gpadls.remove(gpadl);
        self.send(&GpadlTorndown { header: Header::new(MessageType::GPADL_TORNDOWN), gpadl });
    }
}
