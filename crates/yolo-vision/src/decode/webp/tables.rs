//! How much memory the prefix codes of a lossless WebP take once the decoder has made tables of them.
//!
//! A code of 12 bytes becomes a table of 4 KiB, and a picture may have five codes for each of 65 536 groups: 1.3 GB from
//! a file of 4 MB. So the stream is read up to the last code beforehand, and nothing is built. Copies and the colour cache
//! need not be followed: they only repeat pixels, and the number of groups is the largest literal one.
//! Source: RFC 9649, section 3.

use crate::picture::Size;

/// Longest code that the decoder looks up in one step; longer ones are chains of nodes.
const TABLE_BITS: usize = 10;
const TABLE_ENTRY_BYTES: usize = 4;
/// Two nodes of 16 bytes for each symbol of a longer code.
const LONG_SYMBOL_BYTES: usize = 32;
/// Five empty codes, three times: the list of groups doubles when it is full, and the old one lives meanwhile.
const GROUP_BYTES: usize = 3 * 5 * 64;

const LENGTHS: usize = 16;
const LITERALS: usize = 256;
const LENGTH_SYMBOLS: usize = 24;
const DISTANCE_SYMBOLS: usize = 40;
/// In this order the lengths of the code for lengths are stored.
const LENGTH_ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Bytes of the tables for a stream without its header, of a picture of `size`. A broken stream counts as far as it goes,
/// since the decoder goes no further; so does one whose tables pass `limit_bytes`.
pub(super) fn table_bytes(stream: &[u8], size: Size, limit_bytes: usize) -> usize {
    let mut walk = Walk { stream, position_bits: 0, bytes: 0, limit_bytes };
    // `None` is the end of the walk, early or not: what was counted until then is the answer.
    let _ = walk.picture(size);
    walk.bytes
}

/// How a code is stored.
enum Stored {
    /// Two symbols of one bit, as they come, even if they are the same.
    Pair([usize; 2]),
    /// The length of each symbol's code, 0 for symbols that do not occur.
    Lengths(Vec<usize>),
}

/// A canonical prefix code: how many symbols have each length, and all symbols in the order of their codes.
struct Code {
    counts: [u32; LENGTHS],
    symbols: Vec<usize>,
}

impl Code {
    fn new(stored: Stored) -> Self {
        let lengths = match stored {
            Stored::Pair(symbols) => {
                let mut counts = [0; LENGTHS];
                counts[1] = 2;
                return Self { counts, symbols: symbols.to_vec() };
            }
            Stored::Lengths(lengths) => lengths,
        };
        let mut used: Vec<_> = lengths.iter().copied().enumerate().filter(|(_, length)| *length > 0).collect();
        used.sort_by_key(|(_, length)| *length);
        let mut counts = [0; LENGTHS];
        for (_, length) in &used {
            if let Some(count) = counts.get_mut(*length) {
                *count += 1;
            }
        }
        Self { counts, symbols: used.into_iter().map(|(symbol, _)| symbol).collect() }
    }
}

struct Walk<'a> {
    stream: &'a [u8],
    position_bits: usize,
    bytes: usize,
    limit_bytes: usize,
}

impl Walk<'_> {
    /// The next `count` bits, at most 24, the first one lowest.
    fn bits(&mut self, count: u32) -> Option<usize> {
        let rest = self.stream.get(self.position_bits / 8..)?;
        let mut window = [0; 4];
        window.iter_mut().zip(rest).for_each(|(byte, next)| *byte = *next);
        let value = u32::from_le_bytes(window) >> (self.position_bits % 8) & ((1 << count) - 1);
        self.position_bits += usize::try_from(count).ok()?;
        (self.position_bits <= 8 * self.stream.len()).then_some(usize::try_from(value).ok()?)
    }

    fn symbol(&mut self, code: &Code) -> Option<usize> {
        if let [only] = code.symbols[..] {
            return Some(only);
        }
        let (mut value, mut first, mut index) = (0, 0, 0);
        for count in code.counts.iter().skip(1) {
            value |= u32::try_from(self.bits(1)?).ok()?;
            if value < first + count {
                return code.symbols.get(usize::try_from(index + value - first).ok()?).copied();
            }
            index += count;
            first = (first + count) << 1;
            value <<= 1;
        }
        None
    }

    fn picture(&mut self, size: Size) -> Option<()> {
        let mut width = size.width();
        let blocks = |width: usize, bits: usize| width.div_ceil(1 << bits) * size.height().div_ceil(1 << bits);
        let mut seen = [false; 4];
        while self.bits(1)? == 1 {
            let kind = self.bits(2)?;
            if std::mem::replace(seen.get_mut(kind)?, true) {
                return None;
            }
            match kind {
                0 | 1 => {
                    let bits = self.bits(3)? + 2;
                    self.pixels(blocks(width, bits))?;
                }
                2 => {}
                _ => {
                    let colours = self.bits(8)? + 1;
                    self.pixels(colours)?;
                    width = width.div_ceil(match colours {
                        ..=2 => 8,
                        3..=4 => 4,
                        5..=16 => 2,
                        _ => 1,
                    });
                }
            }
        }
        let cache = self.cache_symbols()?;
        let groups = if self.bits(1)? == 1 {
            let bits = self.bits(3)? + 2;
            self.pixels(blocks(width, bits))? + 1
        } else {
            1
        };
        for _ in 0..groups {
            self.group(cache)?;
        }
        Some(())
    }

    fn cache_symbols(&mut self) -> Option<usize> {
        if self.bits(1)? == 0 { Some(0) } else { Some(1 << self.bits(4)?) }
    }

    /// A picture within the picture: skips its pixels and returns the largest 16-bit number in red and green.
    fn pixels(&mut self, count: usize) -> Option<usize> {
        let cache = self.cache_symbols()?;
        let [green, red, blue, alpha, distance] = self.group(cache)?.map(Code::new);
        let (mut left, mut largest) = (count, 0);
        while left > 0 {
            let symbol = self.symbol(&green)?;
            if symbol < LITERALS {
                largest = largest.max((self.symbol(&red)? << 8) + symbol);
                self.symbol(&blue)?;
                self.symbol(&alpha)?;
                left -= 1;
            } else if symbol < LITERALS + LENGTH_SYMBOLS {
                let copied = self.prefixed(symbol - LITERALS)?;
                let reach = self.symbol(&distance)?;
                self.prefixed(reach)?;
                left = left.saturating_sub(copied);
            } else {
                left -= 1;
            }
        }
        Some(largest)
    }

    /// A length or a distance: a symbol that stands for a range, and bits that choose in it.
    fn prefixed(&mut self, symbol: usize) -> Option<usize> {
        if symbol < 4 {
            return Some(symbol + 1);
        }
        let extra = u32::try_from((symbol - 2) / 2).ok()?;
        Some(((2 + symbol % 2) << extra) + self.bits(extra)? + 1)
    }

    /// Five codes: green with lengths and cache, red, blue, alpha, distances.
    fn group(&mut self, cache_symbols: usize) -> Option<[Stored; 5]> {
        self.bytes += GROUP_BYTES;
        let codes = [
            self.code(LITERALS + LENGTH_SYMBOLS + cache_symbols)?,
            self.code(LITERALS)?,
            self.code(LITERALS)?,
            self.code(LITERALS)?,
            self.code(DISTANCE_SYMBOLS)?,
        ];
        (self.bytes <= self.limit_bytes).then_some(codes)
    }

    fn code(&mut self, symbols: usize) -> Option<Stored> {
        if self.bits(1)? == 0 {
            let lengths = self.code_lengths(symbols)?;
            let long = lengths.iter().filter(|length| **length > TABLE_BITS).count();
            let longest = lengths.iter().copied().max()?.min(TABLE_BITS);
            self.bytes += (TABLE_ENTRY_BYTES << longest) + LONG_SYMBOL_BYTES * long;
            return Some(Stored::Lengths(lengths));
        }
        let pair = self.bits(1)? == 1;
        let width = if self.bits(1)? == 1 { 8 } else { 1 };
        let first = self.bits(width)?;
        if pair {
            let second = self.bits(8)?;
            // The decoder refuses a symbol that the alphabet lacks; a distance of one would be too large to count.
            return (first < symbols && second < symbols).then_some(Stored::Pair([first, second]));
        }
        let mut lengths = vec![0; symbols];
        *lengths.get_mut(first)? = 1;
        Some(Stored::Lengths(lengths))
    }

    /// The length of each symbol's code.
    fn code_lengths(&mut self, symbols: usize) -> Option<Vec<usize>> {
        let mut lengths = vec![0; symbols];
        let mut of_lengths = vec![0; LENGTH_ORDER.len()];
        let stored = self.bits(4)? + 4;
        for place in LENGTH_ORDER.into_iter().take(stored) {
            *of_lengths.get_mut(place)? = self.bits(3)?;
        }
        let code = Code::new(Stored::Lengths(of_lengths));
        let mut coded = lengths.len();
        if self.bits(1)? == 1 {
            let width = 2 + 2 * u32::try_from(self.bits(3)?).ok()?;
            coded = 2 + self.bits(width)?;
        }
        let (mut position, mut previous) = (0, 8);
        while position < lengths.len() && coded > 0 {
            coded -= 1;
            let (length, repeats) = match self.symbol(&code)? {
                16 => (previous, 3 + self.bits(2)?),
                17 => (0, 3 + self.bits(3)?),
                18 => (0, 11 + self.bits(7)?),
                length => (length, 1),
            };
            lengths.get_mut(position..position + repeats)?.fill(length);
            position += repeats;
            previous = if length > 0 { length } else { previous };
        }
        Some(lengths)
    }
}
