//! A look at the bytes of an ONNX file before any message is decoded: which fields there are, and how many.

/// Most fields in a file: a decoded one takes up to some 250 bytes. The graphs of the published models stay far below.
const MAX_FIELDS: usize = 1 << 20;

/// The messages cogvx writes, by their names in `onnx.proto`.
#[derive(Clone, Copy, Debug)]
enum Message {
    ModelProto,
    OperatorSetIdProto,
    GraphProto,
    NodeProto,
    AttributeProto,
    TensorProto,
    StringStringEntryProto,
    ValueInfoProto,
    TypeProto,
    Tensor,
    TensorShapeProto,
    Dimension,
}

/// What a field holds.
#[derive(Clone, Copy)]
enum Field {
    /// A whole number.
    Varint,
    /// A `float`.
    Fixed32,
    /// Text or bytes.
    Bytes,
    Message(Message),
}

impl Message {
    /// What the field with this number holds; none where cogvx writes no such field.
    ///
    /// Functions, subgraphs, sparse and segmented tensors, training and quantization data are among those.
    fn field(self, number: u64) -> Option<Field> {
        use Field::{Bytes, Fixed32, Varint};
        Some(match (self, number) {
            (Self::ModelProto, 7) => Field::Message(Self::GraphProto),
            (Self::ModelProto, 8) => Field::Message(Self::OperatorSetIdProto),
            (Self::GraphProto, 1) => Field::Message(Self::NodeProto),
            (Self::GraphProto, 5) => Field::Message(Self::TensorProto),
            (Self::GraphProto, 11 | 12) => Field::Message(Self::ValueInfoProto),
            (Self::NodeProto, 5) => Field::Message(Self::AttributeProto),
            (Self::TensorProto, 13) => Field::Message(Self::StringStringEntryProto),
            (Self::ValueInfoProto, 2) => Field::Message(Self::TypeProto),
            (Self::TypeProto, 1) => Field::Message(Self::Tensor),
            (Self::Tensor, 2) => Field::Message(Self::TensorShapeProto),
            (Self::TensorShapeProto, 1) => Field::Message(Self::Dimension),
            (Self::ModelProto | Self::Tensor | Self::Dimension, 1)
            | (Self::OperatorSetIdProto, 2)
            | (Self::AttributeProto, 3 | 8 | 20)
            | (Self::TensorProto, 1 | 2 | 14) => Varint,
            (Self::AttributeProto, 2) => Fixed32,
            (Self::ModelProto, 2 | 3)
            | (Self::OperatorSetIdProto | Self::AttributeProto | Self::ValueInfoProto, 1)
            | (Self::GraphProto | Self::Dimension, 2)
            | (Self::NodeProto, 1..=4 | 7)
            | (Self::AttributeProto, 4)
            | (Self::TensorProto, 8 | 9)
            | (Self::StringStringEntryProto, 1 | 2) => Bytes,
            _ => return None,
        })
    }
}

impl Field {
    const fn wire_type(self) -> u64 {
        match self {
            Self::Varint => 0,
            Self::Bytes | Self::Message(_) => 2,
            Self::Fixed32 => 5,
        }
    }
}

/// Checks that `bytes` are a `ModelProto` of known fields, not too many; the error is what was found instead.
///
/// Messages wait on a list, so nesting costs no stack; none of those known holds its own kind.
pub(super) fn scan(bytes: &[u8]) -> Result<(), String> {
    let mut open = vec![(Message::ModelProto, bytes)];
    let mut fields = 0;
    while let Some((message, mut rest)) = open.pop() {
        while !rest.is_empty() {
            let cut = || format!("a {message:?} that ends inside a field");
            let key = varint(&mut rest).ok_or_else(cut)?;
            let field = message.field(key >> 3).filter(|field| field.wire_type() == key & 7);
            let field = field.ok_or_else(|| format!("field {} of type {} in a {message:?}", key >> 3, key & 7))?;
            fields += 1;
            if fields > MAX_FIELDS {
                return Err(format!("more than {MAX_FIELDS} fields"));
            }
            let length = match field {
                Field::Varint => varint(&mut rest).map(|_| 0).ok_or_else(cut)?,
                Field::Fixed32 => 4,
                Field::Bytes | Field::Message(_) => varint(&mut rest).ok_or_else(cut)?,
            };
            let length = usize::try_from(length).ok().filter(|&length| length <= rest.len()).ok_or_else(cut)?;
            let (content, after) = rest.split_at(length);
            rest = after;
            if let Field::Message(inner) = field {
                open.push((inner, content));
            }
        }
    }
    Ok(())
}

/// The number at the start of `bytes`, seven bits a byte, which is taken off.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        number |= bits.checked_shl(7 * u32::try_from(i).ok()?).filter(|shifted| shifted >> (7 * i) == bits)?;
        if byte & 0x80 == 0 {
            *bytes = &bytes[i + 1..];
            return Some(number);
        }
    }
    None
}
