//! Each tensor of a student: the rows and columns of the teacher's that it is.

use cogvx_graphs::DType;
use cogvx_graphs::config::DitConfig;
use cogvx_graphs::weights::Tensor;
use ndarray::{Array2, ArrayView1, Axis, Slice};

use super::StudentError;
use super::select::Selection;
use super::teacher::{Teacher, row_bytes};
use super::time::{Linear, Time};
use crate::export::convert::{decode, encode};

/// A tensor to be written.
pub(super) struct Piece {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    source: Source,
}

/// Where its numbers come from.
enum Source {
    /// Rows of a tensor of the teacher, and columns of these.
    Cut { from: String, rows: Option<Vec<usize>>, columns: Columns },
    /// The bias of a modulation: what is left of the teacher's weight where features are a map of fewer, and its bias.
    Bias { weight: String, bias: String, rows: Vec<usize>, last: Vec<f64> },
    /// Made.
    Numbers(Vec<f64>),
}

enum Columns {
    All,
    Some(Vec<usize>),
    /// Products of the rows with this matrix.
    Times(Array2<f64>),
}

impl Piece {
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.size() as u64
    }

    /// Hand on the tensor's bytes, a block after the other.
    pub fn write(
        &self,
        teacher: &Teacher,
        out: &mut dyn FnMut(&[u8]) -> Result<(), StudentError>,
    ) -> Result<(), StudentError> {
        match &self.source {
            Source::Numbers(numbers) => out(&encoded(numbers, self.dtype)),
            Source::Bias { weight, bias, rows, last } => {
                let mut sums = teacher.numbers(bias)?;
                let last = ArrayView1::from(last);
                let (tensor, mut numbers) = (teacher.tensor(weight), vec![]);
                teacher.rows(tensor, |first, bytes| {
                    decode(bytes, tensor.dtype, &mut numbers);
                    for (row, sum) in numbers.chunks_exact(last.len()).zip(&mut sums[first..]) {
                        *sum += row.iter().zip(last).map(|(&x, y)| f64::from(x) * y).sum::<f64>();
                    }
                    Ok(())
                })?;
                out(&encoded(&rows.iter().map(|&row| sums[row]).collect::<Vec<_>>(), self.dtype))
            }
            Source::Cut { from, rows, columns } => {
                let tensor = teacher.tensor(from);
                let (row, mut cut) = (row_bytes(tensor), vec![]);
                teacher.rows(tensor, |first, bytes| {
                    cut.clear();
                    let all = first..first + bytes.len() / row.max(1);
                    let wanted: Vec<_> = match rows {
                        None => all.clone().map(|i| i - first).collect(),
                        Some(rows) => {
                            rows[position(rows, all.start)..position(rows, all.end)].iter().map(|i| i - first).collect()
                        }
                    };
                    columns.take(wanted.iter().map(|i| &bytes[i * row..][..row]), tensor.dtype, &mut cut);
                    out(&cut)
                })
            }
        }
    }
}

/// How many of the ascending `rows` are before `row`.
fn position(rows: &[usize], row: usize) -> usize {
    rows.partition_point(|&x| x < row)
}

impl Columns {
    /// Put what is wanted of `rows` into `out`.
    fn take<'a>(&self, rows: impl ExactSizeIterator<Item = &'a [u8]>, dtype: DType, out: &mut Vec<u8>) {
        match (self, dtype) {
            (Self::All, _) => rows.for_each(|row| out.extend_from_slice(row)),
            (Self::Some(columns), DType::F32) => {
                rows.for_each(|row| out.extend(gather(row.as_chunks::<4>().0, columns)));
            }
            (Self::Some(columns), _) => rows.for_each(|row| out.extend(gather(row.as_chunks::<2>().0, columns))),
            (Self::Times(matrix), _) => {
                let (mut numbers, mut all) = (vec![], Vec::with_capacity(rows.len() * matrix.nrows()));
                let count = rows.len();
                for row in rows {
                    decode(row, dtype, &mut numbers);
                    all.extend(numbers.iter().map(|&x| f64::from(x)));
                }
                let rows = Array2::from_shape_vec((count, matrix.nrows()), all).expect("rows as long as the matrix");
                out.extend(encoded(rows.dot(matrix).as_slice().unwrap_or_default(), dtype));
            }
        }
    }
}

fn gather<const N: usize>(row: &[[u8; N]], columns: &[usize]) -> impl Iterator<Item = u8> {
    columns.iter().flat_map(|&column| row[column])
}

#[allow(clippy::cast_possible_truncation)] // Rounded to the file's precision.
fn encoded(numbers: &[f64], dtype: DType) -> Vec<u8> {
    let mut bytes = vec![];
    encode(&numbers.iter().map(|&x| x as f32).collect::<Vec<_>>(), dtype, &mut bytes);
    bytes
}

/// The student's tensors in name order.
pub(super) fn pieces(teacher: &Teacher, student: &DitConfig, selection: &Selection, time: &Time) -> Vec<Piece> {
    let cutter = Cutter { teacher, student, selection, time };
    let mut pieces: Vec<_> = teacher.weights.iter().filter_map(|tensor| cutter.piece(tensor)).collect();
    pieces.sort_by(|a, b| a.name.cmp(&b.name));
    pieces
}

struct Cutter<'a> {
    teacher: &'a Teacher,
    student: &'a DitConfig,
    selection: &'a Selection,
    time: &'a Time,
}

impl Cutter<'_> {
    /// What becomes of a tensor of the teacher; nothing in blocks that go, and of stored positions that are computed anyway.
    fn piece(&self, tensor: &Tensor) -> Option<Piece> {
        let hidden = || Some(self.selection.hidden.clone());
        let name = tensor.name.as_str();
        if let Some((layer, rest)) = block_of(name) {
            let at = self.selection.layers.iter().position(|&kept| kept == layer)?;
            return Some(self.of_block(tensor, at, rest));
        }
        let some = |columns| Columns::Some(columns);
        Some(match name {
            "patch_embed.pos_embedding" if !self.student.use_learned_positional_embeddings => return None,
            "patch_embed.pos_embedding" => {
                // `[1, tokens, width]`: all tokens are one row.
                let (tokens, width) = (tensor.shape[1], tensor.shape[2]);
                let kept = &self.selection.hidden;
                let columns = (0..tokens).flat_map(|token| kept.iter().map(move |c| token * width + c)).collect();
                let mut piece = cut(name, tensor, None, some(columns));
                piece.shape = vec![1, tokens, kept.len()];
                piece
            }
            "time_embedding.linear_1.weight" => made(tensor, &self.time.layers[0], true),
            "time_embedding.linear_1.bias" => made(tensor, &self.time.layers[0], false),
            "time_embedding.linear_2.weight" => made(tensor, &self.time.layers[1], true),
            "time_embedding.linear_2.bias" => made(tensor, &self.time.layers[1], false),
            "norm_out.linear.weight" | "norm_out.linear.bias" => self.modulation(name.into(), tensor, 2),
            "proj_out.weight" => cut(name, tensor, None, some(self.selection.hidden.clone())),
            "proj_out.bias" => cut(name, tensor, None, Columns::All),
            _ if name.starts_with("ofs_embedding.") => cut(name, tensor, None, Columns::All),
            // Norms, the patch and text projections: their rows are the width.
            _ => cut(name, tensor, hidden(), Columns::All),
        })
    }

    fn of_block(&self, tensor: &Tensor, at: usize, rest: &str) -> Piece {
        let name = format!("transformer_blocks.{at}.{rest}");
        let Selection { hidden, heads, ffn, .. } = self.selection;
        let (hidden, heads, ffn) = (|| hidden.clone(), || heads[at].clone(), || ffn[at].clone());
        let some = Columns::Some;
        match rest {
            "norm1.linear.weight" | "norm1.linear.bias" | "norm2.linear.weight" | "norm2.linear.bias" => {
                self.modulation(name, tensor, 6)
            }
            // One for all heads.
            _ if rest.starts_with("attn1.norm_") => cut(&name, tensor, None, Columns::All),
            "attn1.to_q.weight" | "attn1.to_k.weight" | "attn1.to_v.weight" => {
                cut(&name, tensor, Some(heads()), some(hidden()))
            }
            "attn1.to_q.bias" | "attn1.to_k.bias" | "attn1.to_v.bias" => {
                cut(&name, tensor, Some(heads()), Columns::All)
            }
            "attn1.to_out.0.weight" => cut(&name, tensor, Some(hidden()), some(heads())),
            "ff.net.0.proj.weight" => cut(&name, tensor, Some(ffn()), some(hidden())),
            "ff.net.0.proj.bias" => cut(&name, tensor, Some(ffn()), Columns::All),
            "ff.net.2.weight" => cut(&name, tensor, Some(hidden()), some(ffn())),
            // Norms and the other biases.
            _ => cut(&name, tensor, Some(hidden()), Columns::All),
        }
    }

    /// The layer that makes `parts` modulations of the time embedding, each as wide as the model.
    fn modulation(&self, name: String, tensor: &Tensor, parts: usize) -> Piece {
        let (width, hidden) = (self.teacher.config.width(), &self.selection.hidden);
        let rows: Vec<_> = (0..parts).flat_map(|part| hidden.iter().map(move |c| part * width + c)).collect();
        let is_bias = tensor.shape.len() == 1;
        match &self.time.map {
            None => cut(&name, tensor, Some(rows), Columns::All),
            // Features are `[f, 1] M`: weights times `M`'s rows but the last, and the last adds to the bias.
            Some(map) if is_bias => {
                let last = map.row(map.nrows() - 1).to_vec();
                let weight = format!("{}weight", tensor.name.trim_end_matches("bias"));
                let source = Source::Bias { weight, bias: tensor.name.clone(), rows: rows.clone(), last };
                Piece { name, dtype: tensor.dtype, shape: vec![rows.len()], source }
            }
            Some(map) => {
                let matrix = map.slice_axis(Axis(0), Slice::from(..map.nrows() - 1)).t().to_owned();
                cut(&name, tensor, Some(rows), Columns::Times(matrix))
            }
        }
    }
}

/// The block of a tensor, and its name in there.
fn block_of(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("transformer_blocks.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// Rows and columns of a tensor; all of them where there are as many.
fn cut(name: &str, tensor: &Tensor, rows: Option<Vec<usize>>, columns: Columns) -> Piece {
    let mut shape = tensor.shape.clone();
    if let (Some(rows), Some(first)) = (&rows, shape.first_mut()) {
        *first = rows.len();
    }
    match &columns {
        Columns::All => {}
        Columns::Some(columns) => shape[1] = columns.len(),
        Columns::Times(matrix) => shape[1] = matrix.ncols(),
    }
    // As they are, rows need not be looked at.
    let rows = rows.filter(|rows| Some(&rows.len()) != tensor.shape.first());
    let columns = match columns {
        Columns::Some(all) if Some(&all.len()) == tensor.shape.get(1) => Columns::All,
        other => other,
    };
    let source = Source::Cut { from: tensor.name.clone(), rows, columns };
    Piece { name: name.into(), dtype: tensor.dtype, shape, source }
}

/// The weight or the bias of a layer.
fn made(tensor: &Tensor, layer: &Linear, weight: bool) -> Piece {
    let (shape, numbers) = if weight {
        (layer.weight.shape().to_vec(), layer.weight.iter().copied().collect())
    } else {
        (vec![layer.bias.len()], layer.bias.to_vec())
    };
    Piece { name: tensor.name.clone(), dtype: tensor.dtype, shape, source: Source::Numbers(numbers) }
}
