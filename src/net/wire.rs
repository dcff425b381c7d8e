//! Netlink attributes as bytes: a writer that cannot produce a torn message and a reader that cannot be hurt by one.
//!
//! Layout: <https://docs.kernel.org/userspace-api/netlink/intro.html>. Attributes are `{len: u16, type: u16, payload}`
//! in host byte order, padded to four bytes; `len` counts the header but not the padding.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The bit in an attribute's type that says its payload is attributes again.
const NLA_F_NESTED: u16 = 1 << 15;
/// The bit in an attribute's type that says its payload is big-endian; only some kernel users set it.
const NLA_F_NET_BYTEORDER: u16 = 1 << 14;
const ALIGN: usize = 4;
const ATTR_HEADER: usize = 4;

/// `len` rounded up to netlink's alignment of four bytes.
pub(crate) const fn align(len: usize) -> usize {
    (len + ALIGN - 1) & !(ALIGN - 1)
}

/// The body of a message: the family's fixed header, then attributes. Numbers are host order unless the name says `be`.
///
/// An attribute's length is sixteen bits; one that does not fit marks the body as too long
/// ([`Body::is_too_long`]) and the message is refused when it is put into a batch, never sent torn.
#[derive(Debug, Clone, Default)]
pub struct Body {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Body {
    /// A body that starts with the family's fixed header (`ifinfomsg`, `rtmsg`, `nfgenmsg`, …) as bytes.
    pub fn new(header: &[u8]) -> Self {
        let mut body = Self {
            bytes: Vec::with_capacity(256),
            too_long: false,
        };
        body.raw(header);
        body
    }

    /// The bytes so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether an attribute, or a nest of them, exceeded 64 KiB.
    pub fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// Bytes without attribute framing, padded: a fixed header inside a nest, as `VETH_INFO_PEER` wants it.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad()
    }

    /// An attribute of arbitrary bytes.
    pub fn bytes(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let Ok(len) = u16::try_from(ATTR_HEADER.saturating_add(payload.len())) else {
            self.too_long = true;
            return self;
        };
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad()
    }

    /// Thirty-two bits in host order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Thirty-two bits in network order, as nftables wants its numbers.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// An IPv4 address.
    pub fn ipv4(&mut self, kind: u16, address: Ipv4Addr) -> &mut Self {
        self.bytes(kind, &address.octets())
    }

    /// An address of either family.
    pub fn ip(&mut self, kind: u16, address: IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(address) => self.bytes(kind, &address.octets()),
            IpAddr::V6(address) => self.bytes(kind, &address.octets()),
        }
    }

    /// A text with its terminating NUL.
    pub fn str(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut payload = Vec::with_capacity(text.len().saturating_add(1));
        payload.extend_from_slice(text.as_bytes());
        payload.push(0);
        self.bytes(kind, &payload)
    }

    /// An attribute that holds what `fill` writes, with the nested bit set.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        match u16::try_from(self.bytes.len().saturating_sub(start)) {
            Ok(len) => {
                if let Some(slot) = self.bytes.get_mut(start..start.saturating_add(2)) {
                    slot.copy_from_slice(&len.to_ne_bytes());
                }
            }
            Err(_) => self.too_long = true,
        }
        self
    }

    fn pad(&mut self) -> &mut Self {
        self.bytes.resize(align(self.bytes.len()), 0);
        self
    }
}

/// Bytes that are not the attributes they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink message: {expected} at byte {offset}")]
pub struct Malformed {
    /// What should have been there.
    pub expected: &'static str,
    /// Where, counted from the start of the slice that was read.
    pub offset: usize,
}

/// One attribute of a received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Its type without the nested and byte-order bits.
    pub kind: u16,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> Attr<'a> {
    /// The payload as thirty-two bits in host order.
    pub fn u32(&self) -> Option<u32> {
        array(self.payload, 0).map(u32::from_ne_bytes)
    }

    /// The payload as thirty-two bits in network order.
    pub fn be32(&self) -> Option<u32> {
        array(self.payload, 0).map(u32::from_be_bytes)
    }

    /// The payload as sixty-four bits in network order.
    pub fn be64(&self) -> Option<u64> {
        array(self.payload, 0).map(u64::from_be_bytes)
    }

    /// The payload as an IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        (self.payload.len() == 4)
            .then(|| array::<4>(self.payload, 0))
            .flatten()
            .map(Ipv4Addr::from)
    }

    /// The payload as an IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        (self.payload.len() == 16)
            .then(|| array::<16>(self.payload, 0))
            .flatten()
            .map(Ipv6Addr::from)
    }

    /// The payload up to its first NUL, if that is UTF-8.
    pub fn str(&self) -> Option<&'a str> {
        let end = self.payload.iter().position(|byte| *byte == 0);
        let text = self.payload.get(..end.unwrap_or(self.payload.len()))?;
        std::str::from_utf8(text).ok()
    }

    /// The attributes inside.
    ///
    /// # Errors
    /// [`Malformed`] when the payload is not attributes.
    pub fn nested(&self) -> Result<Attrs<'a>, Malformed> {
        Attrs::parse(self.payload)
    }
}

/// The attributes of a message or nest, checked as a whole before the first is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attrs<'a> {
    bytes: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// Reads attributes that fill `bytes` from start to end.
    ///
    /// # Errors
    /// [`Malformed`] when a length lies outside.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match split_attr(rest) {
                Some((_, after)) => rest = after,
                None => {
                    return Err(Malformed {
                        expected: "an attribute",
                        offset: bytes.len().saturating_sub(rest.len()),
                    });
                }
            }
        }
        Ok(Self { bytes })
    }

    /// The attributes after a fixed header of `header` bytes (padded to four).
    ///
    /// # Errors
    /// [`Malformed`] when the message is shorter than its header or the rest is not attributes.
    pub fn after(message: &'a [u8], header: usize) -> Result<Self, Malformed> {
        let rest = message
            .get(align(header)..)
            .or((message.len() == header).then_some(&[][..]));
        Self::parse(rest.ok_or(Malformed {
            expected: "a complete header",
            offset: message.len(),
        })?)
    }

    /// The first attribute of type `kind`.
    pub fn find(self, kind: u16) -> Option<Attr<'a>> {
        self.into_iter().find(|attr| attr.kind == kind)
    }
}

impl<'a> IntoIterator for Attrs<'a> {
    type Item = Attr<'a>;
    type IntoIter = AttrIter<'a>;

    fn into_iter(self) -> AttrIter<'a> {
        AttrIter { rest: self.bytes }
    }
}

/// Iterates over [`Attrs`].
#[derive(Debug, Clone)]
pub struct AttrIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for AttrIter<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let (attr, after) = split_attr(self.rest)?;
        self.rest = after;
        Some(attr)
    }
}

fn split_attr(bytes: &[u8]) -> Option<(Attr<'_>, &[u8])> {
    let len = usize::from(array(bytes, 0).map(u16::from_ne_bytes)?);
    let kind = array(bytes, 2).map(u16::from_ne_bytes)?;
    let payload = bytes.get(ATTR_HEADER..len)?;
    let attr = Attr {
        kind: kind & !(NLA_F_NESTED | NLA_F_NET_BYTEORDER),
        payload,
    };
    // The last attribute's padding may be missing.
    Some((attr, bytes.get(align(len)..).unwrap_or_default()))
}

/// `N` bytes at `offset`, if they are there: how fixed headers are read.
pub fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut body = Body::new(&[9, 9, 9, 9]);
        body.u32(1, 0xdead_beef)
            .str(2, "eth0")
            .nest(3, |inner| {
                inner.u32(1, 7).ipv4(2, Ipv4Addr::new(10, 0, 1, 5));
            })
            .be32(4, 1)
            .bytes(5, &[])
            .ip(7, IpAddr::V6(Ipv6Addr::LOCALHOST));
        let attrs = Attrs::after(body.as_bytes(), 4).unwrap();
        assert_eq!(attrs.find(1).unwrap().u32(), Some(0xdead_beef));
        assert_eq!(attrs.find(2).unwrap().str(), Some("eth0"));
        let inner = attrs.find(3).unwrap().nested().unwrap();
        assert_eq!(inner.find(1).unwrap().u32(), Some(7));
        assert_eq!(inner.find(2).unwrap().ipv4(), Some(Ipv4Addr::new(10, 0, 1, 5)));
        assert_eq!(attrs.find(4).unwrap().be32(), Some(1));
        assert_eq!(attrs.find(5).unwrap().payload, b"");
        assert_eq!(attrs.find(6), None);
        let six = attrs.find(7).unwrap();
        assert_eq!((six.ipv6(), six.ipv4()), (Some(Ipv6Addr::LOCALHOST), None));
    }

    #[test]
    fn golden_bytes() {
        let mut body = Body::new(&[]);
        body.str(3, "eni");
        let mut expected = 8_u16.to_ne_bytes().to_vec();
        expected.extend_from_slice(&3_u16.to_ne_bytes());
        expected.extend_from_slice(b"eni\0");
        assert_eq!(body.as_bytes(), expected);
    }

    #[test]
    fn too_long_is_remembered() {
        let mut body = Body::new(&[]);
        assert!(!body.bytes(1, &vec![0; 65_531]).is_too_long());
        assert!(body.bytes(1, &vec![0; 65_532]).is_too_long());
        let mut nested = Body::new(&[]);
        nested.nest(1, |inner| {
            inner.bytes(2, &vec![0; 40_000]).bytes(2, &vec![0; 40_000]);
        });
        assert!(nested.is_too_long());
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for bytes in [
            &[3, 0, 0, 0][..],
            &[0, 0, 0, 0],
            &[9, 0, 1, 0, 1],
            &[4, 0, 1],
            &[1],
        ] {
            assert!(Attrs::parse(bytes).is_err(), "{bytes:?}");
        }
        assert!(Attrs::after(&[1, 2], 4).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256), header in 0_usize..64) {
            if let Ok(attrs) = Attrs::after(&bytes, header) {
                for attr in attrs {
                    let _seen = (attr.u32(), attr.be32(), attr.be64(), attr.ipv4(), attr.ipv6(), attr.str());
                    if let Ok(inner) = attr.nested() {
                        prop_assert!(inner.into_iter().count() <= bytes.len());
                    }
                }
            }
        }

        #[test]
        fn any_attributes_round_trip(attrs in proptest::collection::vec((0_u16..0x4000, proptest::collection::vec(any::<u8>(), 0..64)), 0..16)) {
            let mut body = Body::new(&[]);
            for (kind, payload) in &attrs {
                body.bytes(*kind, payload);
            }
            let read: Vec<_> = Attrs::parse(body.as_bytes()).unwrap().into_iter().map(|attr| (attr.kind, attr.payload.to_vec())).collect();
            prop_assert_eq!(read, attrs);
        }
    }
}
