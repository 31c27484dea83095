//! Outlines of a mask.
#![expect(
    clippy::indexing_slicing,
    reason = "a trace moves between pixels that are set, and a ring of empty ones surrounds them all"
)]

use crate::mask::Bitmap;

/// A pixel outside of the mask.
const EMPTY: i8 = 0;
/// A pixel of the mask on no border yet.
const FILLED: i8 = 1;
/// A border pixel.
const BORDER: i8 = 2;
/// A border pixel behind which, to the right, the mask ends.
const BORDER_END: i8 = -2;
/// The eight directions counter-clockwise from the right, as (right, down).
const DIRECTIONS: [(isize, isize); 8] = [(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)];
const RIGHT: usize = 0;
const LEFT: usize = 4;

/// The outermost outline with the most points `[x, y]`, in pixels of the model's input; of equal ones the lowest.
///
/// Straight runs keep their ends only. Holes are filled, and so is what lies in them. Points, their order and the first
/// one equal OpenCV's `findContours(RETR_EXTERNAL, CHAIN_APPROX_SIMPLE)`. Source: Suzuki and Abe, "Topological structural
/// analysis of digitized binary images by border following", 1985.
pub(crate) fn largest_outline(bitmap: &Bitmap) -> Vec<[usize; 2]> {
    let mut grid = Grid::new(bitmap);
    let mut largest = Vec::new();
    for row in (grid.stride..grid.cells.len() - grid.stride).step_by(grid.stride) {
        let mut outside = true;
        for cell in row + 1..row + grid.stride {
            if outside && grid.cells[cell - 1] == EMPTY && grid.cells[cell] == FILLED {
                let outline = grid.trace(cell);
                // OpenCV lists the lowest outline first, and the first of equal ones is taken.
                if outline.len() >= largest.len() {
                    largest = outline;
                }
            }
            match grid.cells[cell] {
                BORDER => outside = false,
                BORDER_END => outside = true,
                _ => {}
            }
        }
    }
    let point = |cell: usize| [bitmap.left + cell % grid.stride - 1, bitmap.top + cell / grid.stride - 1];
    largest.into_iter().map(point).collect()
}

/// The mask inside a ring of empty cells, row by row.
struct Grid {
    cells: Vec<i8>,
    stride: usize,
}

impl Grid {
    fn new(bitmap: &Bitmap) -> Self {
        let stride = bitmap.width + 2;
        let mut cells = vec![EMPTY; stride];
        for row in bitmap.pixels.chunks_exact(bitmap.width) {
            cells.push(EMPTY);
            cells.extend(row.iter().map(|&pixel| if pixel { FILLED } else { EMPTY }));
            cells.push(EMPTY);
        }
        cells.resize(cells.len() + stride, EMPTY);
        Self { cells, stride }
    }

    fn neighbour(&self, cell: usize, direction: usize) -> usize {
        let (right, down) = DIRECTIONS[direction % 8];
        cell.wrapping_add_signed(right + down * self.stride.cast_signed())
    }

    /// Follows an outer border counter-clockwise from its first cell in reading order, and marks it.
    fn trace(&mut self, start: usize) -> Vec<usize> {
        // Clockwise from the left, which is empty: the cell from which the trace will come back.
        let Some(last_direction) =
            (1..8).map(|turn| LEFT + 8 - turn).find(|&direction| self.cells[self.neighbour(start, direction)] != EMPTY)
        else {
            self.cells[start] = BORDER_END;
            return vec![start];
        };
        let last = self.neighbour(start, last_direction);
        let mut outline = Vec::new();
        let (mut cell, mut back) = (start, last_direction % 8);
        let mut before = back ^ LEFT; // the direction in which the trace arrived
        loop {
            let (direction, right_is_empty) = self.turn(cell, back);
            if right_is_empty {
                self.cells[cell] = BORDER_END;
            } else if self.cells[cell] == FILLED {
                self.cells[cell] = BORDER;
            }
            if direction != before {
                outline.push(cell);
                before = direction;
            }
            let next = self.neighbour(cell, direction);
            if next == start && cell == last {
                return outline;
            }
            (cell, back) = (next, (direction + 4) % 8);
        }
    }

    /// Counter-clockwise from `back`: the direction of the first filled neighbour, and whether the right one was passed
    /// and empty. The neighbour at `back` is filled, so there is one.
    fn turn(&self, cell: usize, back: usize) -> (usize, bool) {
        let empty = |direction: usize| self.cells[self.neighbour(cell, direction)] == EMPTY;
        let turns = (1..8).take_while(|turn| empty(back + turn)).count() + 1;
        let passed_right = (back + 1..back + turns).any(|direction| direction % 8 == RIGHT);
        ((back + turns) % 8, passed_right)
    }
}
