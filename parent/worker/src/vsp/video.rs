//! The screen's video memory in the guest's address space, and pictures of the screen.

use std::sync::{Arc, Mutex, PoisonError};

use parterre_api::ErrorCode;
use parterre_api::guest::GuestAnswer;
use parterre_chipset::acpi::VMBUS_MMIO;
use parterre_partition::Partition;
use parterre_partition::device_memory::DeviceMemory;
use parterre_vsp_video::{Picture, Screen, VRAM_SIZE, Vram};

const PAGE_SIZE: u64 = 4096;

#[derive(Default)]
struct Place {
    partition: Option<Arc<dyn Partition>>,
    gpa: Option<u64>,
}

/// Video memory and where it is.
struct GuestVram {
    memory: Arc<DeviceMemory>,
    place: Mutex<Place>,
}

impl GuestVram {
    fn with<R>(&self, change: impl FnOnce(&mut Place) -> R) -> R {
        change(&mut self.place.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether the guest may have its video memory there: in the space that ACPI gives to devices of VMBus.
fn is_possible(gpa: u64) -> bool {
    let (first, last) = (u64::from(VMBUS_MMIO.0), u64::from(VMBUS_MMIO.1));
    gpa.is_multiple_of(PAGE_SIZE)
        && gpa >= first
        && gpa.checked_add(u64::from(VRAM_SIZE) - 1).is_some_and(|end| end <= last)
}

impl Vram for GuestVram {
    fn place(&self, gpa: Option<u64>) -> Result<(), String> {
        self.with(|place| {
            let Place { partition: Some(partition), gpa: now } = place else {
                return if gpa.is_none() { Ok(()) } else { Err("the machine is off".into()) };
            };
            if gpa == *now {
                return Ok(());
            }
            if let Some(gpa) = now.take() {
                // Only what is mapped is ever unmapped; a driver that refuses leaves the guest its own memory, no more.
                let _ = partition.unmap_device_memory(gpa);
            }
            let Some(gpa) = gpa else { return Ok(()) };
            if !is_possible(gpa) {
                return Err(format!("video memory cannot be at {gpa:#x}, outside of the space for devices"));
            }
            partition.map_device_memory(gpa, &self.memory).map_err(|error| error.to_string())?;
            *now = Some(gpa);
            Ok(())
        })
    }

    fn read(&self, offset: u32, bytes: &mut [u8]) -> std::io::Result<()> {
        self.memory.read(offset.into(), bytes)
    }
}

/// The screen of one guest.
pub struct Video {
    vram: Arc<GuestVram>,
    screen: Screen,
}

impl Video {
    /// A screen of a machine that is off.
    ///
    /// # Errors
    /// There is no memory or no file descriptor left.
    pub fn new() -> std::io::Result<Video> {
        let memory = DeviceMemory::new(VRAM_SIZE.into()).map_err(std::io::Error::other)?;
        let vram = Arc::new(GuestVram { memory: Arc::new(memory), place: Mutex::default() });
        Ok(Video { screen: Screen::new(vram.clone())?, vram })
    }

    /// What is offered on the bus.
    pub fn device(&self) -> Arc<Screen> {
        Arc::new(self.screen.clone())
    }

    /// The machine was powered on or reset: the video memory is nowhere and holds nothing.
    pub fn attach(&self, partition: Arc<dyn Partition>) -> Result<(), parterre_partition::Error> {
        self.vram.with(|place| *place = Place { partition: Some(partition), gpa: None });
        self.vram.memory.discard()
    }

    /// The machine has stopped; what was mapped went with it.
    pub fn detach(&self) {
        self.vram.with(|place| *place = Place::default());
    }

    /// A picture of the screen: the answer, and the PNG file behind it.
    pub fn screenshot(&self) -> (GuestAnswer, Vec<u8>) {
        let failed = |code, message| (GuestAnswer::Failed { code, message }, Vec::new());
        let Some(picture) = self.screen.picture() else {
            let message = match self.screen.state().version {
                Some(_) => "the guest shows nothing on its screen now",
                None => "the guest does not use its screen (its driver hyperv_drm is not loaded)",
            };
            return failed(ErrorCode::Conflict, message.into());
        };
        let (width, height) = (picture.width, picture.height);
        match png(&picture) {
            Ok(file) => (GuestAnswer::Screenshot { width, height, size: file.len() as u64 }, file),
            Err(error) => failed(ErrorCode::Failed, format!("the picture cannot be made: {error}")),
        }
    }
}

fn png(picture: &Picture) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgb)?;
    writer.finish()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parterre_partition::fake::FakePartition;

    #[test]
    fn video_memory_goes_only_where_devices_are() {
        let video = Video::new().unwrap();
        let place = |gpa| video.vram.place(gpa);
        assert!(place(Some(0xF800_0000)).unwrap_err().contains("off"));
        let partition = FakePartition::default();
        video.attach(Arc::new(partition.clone())).unwrap();
        // Below, RAM; above, IO-APIC and local APICs.
        for gpa in
            [0, 0x1000, 0xF7FF_F000, 0xF800_0001, 0xFEBF_F000, 0xFEC0_0000, 0xFFFF_F000, 1 << 32, u64::MAX]
        {
            assert!(place(Some(gpa)).unwrap_err().contains("outside"), "{gpa:#x}");
        }
        assert!(partition.device_memory().is_empty());
        place(Some(0xF800_0000)).unwrap();
        place(Some(0xF900_0000)).unwrap();
        place(Some(0xF900_0000)).unwrap();
        assert_eq!(partition.device_memory(), [0xF900_0000]);
        place(None).unwrap();
        assert!(partition.device_memory().is_empty());
        place(Some(0xF800_0000)).unwrap();
        video.detach();
        assert_eq!(place(None), Ok(()));
    }

    #[test]
    fn a_picture_is_a_png_file() {
        let picture = Picture { width: 2, height: 1, rgb: vec![1, 2, 3, 4, 5, 6] };
        let file = png(&picture).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        assert_eq!((info.width, info.height, bytes), (2, 1, picture.rgb));
        let (answer, file) = Video::new().unwrap().screenshot();
        assert!(matches!(answer, GuestAnswer::Failed { code: ErrorCode::Conflict, .. }) && file.is_empty());
    }
}
