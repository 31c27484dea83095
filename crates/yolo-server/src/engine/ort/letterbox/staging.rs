//! A batch as the kernel reads it, in one block of bytes that one copy brings to the GPU.
//!
//! ```text
//!   table: 256 words | images: 9 words each | taps of all columns and rows: 4 words each | contents
//! ```
//! Words have 32 bits and the machine's byte order; contents begin at multiples of 16 bytes.

use half::f16;
use half::slice::HalfFloatSliceExt;
use yolo_vision::{Letterbox, Size, Tap, normalise};

use crate::engine::ort::{Element, another_len, image_len};
use crate::engine::{EngineError, EngineInput, Pixels};
use crate::limits::ENGINE_PICTURE_FACTOR;

/// Levels of a picture, and so numbers in the table.
const LEVELS: usize = 256;
const WORD_BYTES: usize = 4;
const IMAGE_WORDS: usize = 9;
const TAP_WORDS: usize = 4;
/// Contents begin at multiples of this, as wide as a GPU loads at once.
const ALIGNMENT: usize = 16;
/// Threads of a block: a warp along the row, so that its writes lie side by side.
const BLOCK: [u32; 3] = [32, 8, 1];

/// `Kind` in the kernel.
#[derive(Clone, Copy)]
enum Kind {
    Black,
    Levels,
    Numbers,
    Picture,
}

/// Where each part of a batch lies.
pub(super) struct Staging {
    element: Element,
    /// All but the contents.
    words: Vec<u32>,
    /// Where the contents begin, one an image.
    places: Vec<usize>,
    /// Length of all, in bytes.
    pub(super) bytes: usize,
}

/// Grid and block, x first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
}

impl Launch {
    /// A thread for each pixel of a batch.
    pub(super) fn of(batch: usize, size: Size) -> Result<Self, EngineError> {
        let [across, down, _] = BLOCK;
        let grid = [size.width_px.div_ceil(across), size.height_px.div_ceil(down), word(batch)?];
        Ok(Self { grid, block: BLOCK })
    }
}

impl Staging {
    /// Lays `inputs` out, images of `size` for a model whose numbers are `element`, and black ones up to `batch`.
    ///
    /// # Errors
    /// [`EngineError`] for an input of another size, and past 4 GiB.
    pub(super) fn plan(
        inputs: &[&EngineInput],
        (batch, size): (usize, Size),
        element: Element,
    ) -> Result<Self, EngineError> {
        if inputs.len() > batch {
            return Err(EngineError("more pictures than the batch holds".to_owned()));
        }
        let taps_of = |input: &&EngineInput| match &input.pixels {
            Pixels::Picture(_, letterbox) => taps_len(letterbox.resized()),
            Pixels::Levels(_) | Pixels::Numbers(_) => 0,
        };
        let mut tap_word = LEVELS + batch * IMAGE_WORDS;
        let contents = (tap_word + inputs.iter().map(taps_of).sum::<usize>()) * WORD_BYTES;
        let mut staging = Self { element, words: table(element), places: Vec::new(), bytes: contents };
        let mut taps = Vec::new();
        for input in inputs {
            let place = staging.bytes.next_multiple_of(ALIGNMENT);
            let (mut image, bytes) = (Image { content: word(place)?, ..Image::default() }, content_len(input, element));
            if input.size != size {
                return Err(EngineError(format!("pictures of {size} and {} in one batch", input.size)));
            }
            match &input.pixels {
                Pixels::Levels(levels) => fits(levels.len(), image_len(size))?,
                Pixels::Numbers(_) => fits(input.pixels.len(), image_len(size))?,
                Pixels::Picture(picture, letterbox) => {
                    image.letterboxed(letterbox, tap_word)?;
                    fits(picture.rgb().len(), image_len(letterbox.source()))?;
                    taps.extend(letterbox.columns().chain(letterbox.rows()).flat_map(tap_words));
                    tap_word += taps_len(letterbox.resized());
                }
            }
            image.kind = kind(&input.pixels);
            staging.words.extend(image.words());
            staging.places.push(place);
            staging.bytes = place + bytes;
        }
        for _ in inputs.len()..batch {
            staging.words.extend(Image::default().words());
        }
        staging.words.extend(taps);
        word(staging.bytes)?;
        Ok(staging)
    }

    /// Bytes of the largest batch that a server stages.
    pub(super) fn bytes_max(batch: usize, size: Size) -> usize {
        let picture = usize::try_from(ENGINE_PICTURE_FACTOR).unwrap_or(usize::MAX) * image_len(size);
        let words = LEVELS + batch * (IMAGE_WORDS + taps_len(size));
        words * WORD_BYTES + batch * (picture.max(WORD_BYTES * image_len(size)) + ALIGNMENT)
    }

    /// Writes what was planned for `inputs` to `staged`, [`Self::bytes`] at least. What lies between stays as it is.
    ///
    /// # Errors
    /// [`EngineError`] if `staged` is shorter, or these are other inputs.
    pub(super) fn write(&self, inputs: &[&EngineInput], staged: &mut [u8]) -> Result<(), EngineError> {
        let head = staged.as_chunks_mut::<WORD_BYTES>().0;
        fits(head.len().min(self.words.len()), self.words.len())?;
        for (place, word) in head.iter_mut().zip(&self.words) {
            *place = word.to_ne_bytes();
        }
        for (input, place) in inputs.iter().zip(&self.places) {
            let bytes = content_len(input, self.element);
            let content = staged.get_mut(*place..place + bytes).ok_or_else(shorter)?;
            match &input.pixels {
                Pixels::Levels(levels) => content.copy_from_slice(levels),
                Pixels::Picture(picture, _) => content.copy_from_slice(picture.rgb()),
                Pixels::Numbers(_) => self.write_numbers(&input.pixels, content)?,
            }
        }
        Ok(())
    }

    fn write_numbers(&self, pixels: &Pixels, content: &mut [u8]) -> Result<(), EngineError> {
        let mut numbers = vec![0.0_f32; pixels.len()];
        pixels.write(&mut numbers)?;
        match self.element {
            Element::Single => {
                for (place, number) in content.as_chunks_mut().0.iter_mut().zip(&numbers) {
                    *place = number.to_ne_bytes();
                }
            }
            Element::Half => {
                for (place, number) in content.as_chunks_mut().0.iter_mut().zip(halves(&numbers)) {
                    *place = number.to_ne_bytes();
                }
            }
        }
        Ok(())
    }
}

/// `Image` in the kernel.
#[derive(Clone, Copy)]
struct Image {
    kind: Kind,
    content: u32,
    columns: u32,
    rows: u32,
    row_bytes: u32,
    corner_px: [u32; 2],
    resized: Size,
}

impl Default for Image {
    fn default() -> Self {
        let resized = Size::new(0, 0);
        Self { kind: Kind::Black, content: 0, columns: 0, rows: 0, row_bytes: 0, corner_px: [0; 2], resized }
    }
}

impl Image {
    /// Its taps begin at `tap_word`.
    fn letterboxed(&mut self, letterbox: &Letterbox, tap_word: usize) -> Result<(), EngineError> {
        self.resized = letterbox.resized();
        self.corner_px = letterbox.corner_px();
        self.row_bytes = 3 * letterbox.source().width_px;
        let columns = tap_word * WORD_BYTES;
        self.columns = word(columns)?;
        self.rows = word(columns + taps_len(Size::new(self.resized.width_px, 0)) * WORD_BYTES)?;
        Ok(())
    }

    const fn words(self) -> [u32; IMAGE_WORDS] {
        let Self { kind, content, columns, rows, row_bytes, corner_px: [left, top], resized } = self;
        [kind as u32, content, columns, rows, row_bytes, left, top, resized.width_px, resized.height_px]
    }
}

const fn kind(pixels: &Pixels) -> Kind {
    match pixels {
        Pixels::Levels(_) => Kind::Levels,
        Pixels::Numbers(_) => Kind::Numbers,
        Pixels::Picture(..) => Kind::Picture,
    }
}

/// `Tap` in the kernel.
fn tap_words(Tap { first, second, weights }: Tap) -> [u32; TAP_WORDS] {
    let [first_weight, second_weight] = weights.map(|weight| i32::from(weight).cast_unsigned());
    [first, second, first_weight, second_weight]
}

/// Words of a resized picture's taps.
fn taps_len(resized: Size) -> usize {
    let taps = u64::from(resized.width_px) + u64::from(resized.height_px);
    usize::try_from(taps).unwrap_or(usize::MAX) * TAP_WORDS
}

/// Bytes of an image's content.
fn content_len(input: &EngineInput, element: Element) -> usize {
    match &input.pixels {
        Pixels::Levels(levels) => levels.len(),
        Pixels::Picture(picture, _) => picture.rgb().len(),
        Pixels::Numbers(_) => {
            input.pixels.len()
                * match element {
                    Element::Single => size_of::<f32>(),
                    Element::Half => size_of::<f16>(),
                }
        }
    }
}

/// The model's number for each level, in its lower bits.
fn table(element: Element) -> Vec<u32> {
    let levels: Vec<u8> = (0..=u8::MAX).collect();
    let mut numbers = [0.0; LEVELS];
    normalise(&levels, &mut numbers);
    match element {
        Element::Single => numbers.map(f32::to_bits).to_vec(),
        Element::Half => halves(&numbers).iter().map(|number| u32::from(number.to_bits())).collect(),
    }
}

/// Rounding the f32 quotient equals dividing in f16: both operands are exact in f16.
fn halves(numbers: &[f32]) -> Vec<f16> {
    let mut halves = vec![f16::ZERO; numbers.len()];
    halves.convert_from_f32_slice(numbers);
    halves
}

fn word(value: usize) -> Result<u32, EngineError> {
    u32::try_from(value).map_err(|_| EngineError("a batch of more than 4 GiB".to_owned()))
}

fn fits(found: usize, expected: usize) -> Result<(), EngineError> {
    if found == expected { Ok(()) } else { Err(another_len(found, expected)) }
}

fn shorter() -> EngineError {
    EngineError("the buffer is shorter than the batch".to_owned())
}
