//! A disk with a volatile cache, over NBD (the fixed newstyle protocol, one client).
//!
//! Written sectors are kept in memory and reach the image at a flush (or at once with FUA). In a power cut a chance part
//! of the rest reaches it, in no order: what a drive may do with what nobody flushed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use crate::Dice;

const SECTOR: u64 = 512;

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
/// Flags are valid, flush and FUA are understood.
const TRANSMISSION_FLAGS: u16 = 1 | 4 | 8;

/// What becomes of unflushed sectors in the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All are lost.
    Nothing,
    /// So many of a hundred are written, by chance.
    Some(u64),
    /// Half are written, by chance, and one in ten of all is torn: it begins with what was written and ends with what was
    /// there before. Drives promise that sectors are written whole or not at all; not all keep it.
    Torn,
}

/// What the disk saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) flushes: u64,
    pub(crate) lost_sectors: usize,
    pub(crate) kept_sectors: usize,
    pub(crate) torn_sectors: usize,
}

/// Serves one machine until it hangs up; then the power is out.
pub(crate) fn serve(image: &Path, socket: &Path, cut: Cut, dice: Dice) -> io::Result<JoinHandle<Seen>> {
    let file = OpenOptions::new().read(true).write(true).open(image)?;
    let listener = UnixListener::bind(socket)?;
    Ok(thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut disk = Disk {
            size: file.metadata().unwrap().len(),
            file,
            stream,
            cache: BTreeMap::new(),
            seen: Seen::default(),
        };
        // It ends by being cut off.
        drop(disk.greet().and_then(|()| disk.work()));
        disk.end(cut, dice);
        disk.seen
    }))
}

struct Disk {
    file: File,
    size: u64,
    stream: UnixStream,
    cache: BTreeMap<u64, [u8; 512]>,
    seen: Seen,
}

impl Disk {
    fn greet(&mut self) -> io::Result<()> {
        self.put(&NBDMAGIC.to_be_bytes())?;
        self.put(&IHAVEOPT.to_be_bytes())?;
        self.put(&3_u16.to_be_bytes())?;
        self.take::<4>()?;
        loop {
            self.take::<8>()?;
            let option = u32::from_be_bytes(self.take()?);
            let length = u32::from_be_bytes(self.take()?);
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data)?;
            if option != OPT_GO {
                self.answer(option, REP_ERR_UNSUP, &[])?;
                continue;
            }
            let mut info = Vec::from(0_u16.to_be_bytes());
            info.extend(self.size.to_be_bytes());
            info.extend(TRANSMISSION_FLAGS.to_be_bytes());
            self.answer(option, REP_INFO, &info)?;
            return self.answer(option, REP_ACK, &[]);
        }
    }

    fn answer(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut text = Vec::from(OPTION_REPLY.to_be_bytes());
        text.extend(option.to_be_bytes());
        text.extend(kind.to_be_bytes());
        text.extend((data.len() as u32).to_be_bytes());
        text.extend(data);
        self.put(&text)
    }

    fn work(&mut self) -> io::Result<()> {
        loop {
            if u32::from_be_bytes(self.take()?) != REQUEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let flags = u16::from_be_bytes(self.take()?);
            let kind = u16::from_be_bytes(self.take()?);
            let handle = self.take::<8>()?;
            let offset = u64::from_be_bytes(self.take()?);
            let length = u32::from_be_bytes(self.take()?) as usize;
            let mut data = Vec::new();
            let mut error = 0_u32;
            match kind {
                0 => data = self.read(offset, length)?,
                1 => self.write(offset, length)?,
                2 => return Ok(()),
                3 => self.flush()?,
                _ => error = 95, // EOPNOTSUPP
            }
            if flags & 1 != 0 {
                self.flush()?;
            }
            let mut text = Vec::from(REPLY.to_be_bytes());
            text.extend(error.to_be_bytes());
            text.extend(handle);
            text.extend(data);
            self.put(&text)?;
        }
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; length];
        self.file.read_exact_at(&mut data, offset)?;
        let first = offset / SECTOR;
        for (sector, written) in self.cache.range(first..first + (length as u64) / SECTOR) {
            let at = ((sector - first) * SECTOR) as usize;
            data[at..at + written.len()].copy_from_slice(written);
        }
        Ok(data)
    }

    fn write(&mut self, offset: u64, length: usize) -> io::Result<()> {
        assert!(
            offset.is_multiple_of(SECTOR) && (length as u64).is_multiple_of(SECTOR),
            "whole sectors are written"
        );
        for sector in 0..(length as u64) / SECTOR {
            let data = self.take::<512>()?;
            self.cache.insert(offset / SECTOR + sector, data);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.seen.flushes += 1;
        for (sector, data) in std::mem::take(&mut self.cache) {
            self.file.write_all_at(&data, sector * SECTOR)?;
        }
        Ok(())
    }

    fn end(&mut self, cut: Cut, mut dice: Dice) {
        for (sector, data) in std::mem::take(&mut self.cache) {
            let (written, torn) = match cut {
                Cut::Nothing => (0, 0),
                Cut::Some(percent) => (percent, 0),
                Cut::Torn => (45, 10),
            };
            let length = match dice.below(100) {
                chance if chance < written => SECTOR,
                chance if chance < written + torn => 1 + dice.below(SECTOR - 1),
                _ => 0,
            };
            match length {
                0 => self.seen.lost_sectors += 1,
                SECTOR => self.seen.kept_sectors += 1,
                _ => self.seen.torn_sectors += 1,
            }
            self.file
                .write_all_at(&data[..length as usize], sector * SECTOR)
                .unwrap();
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }
}
