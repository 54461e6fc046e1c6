//! Puts GGUF files together byte by byte for tests, also ones that no writer makes.

/// A GGUF file in the making.
#[derive(Clone)]
pub struct Hostile {
    pub magic: [u8; 4],
    pub version: u32,
    /// The counts to declare instead of the true ones.
    pub tensor_count: Option<u64>,
    pub pair_count: Option<u64>,
    pub alignment: usize,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// The bytes of an array value: the type of its elements, their number, and their bytes.
pub fn array(element_type: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&element_type.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

impl Hostile {
    pub fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            pair_count: None,
            alignment: 32,
            pairs: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
        }
    }

    /// A pair whose value has this type id and these bytes.
    pub fn pair(mut self, key: impl AsRef<[u8]>, id: u32, value: &[u8]) -> Self {
        self.pairs.push([&string(key)[..], &id.to_le_bytes(), value].concat());
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.pair(key, 4, &value.to_le_bytes())
    }

    pub fn string(self, key: &str, value: &str) -> Self {
        self.pair(key, 8, &string(value))
    }

    pub fn strings<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        let elements: Vec<u8> = values.iter().flat_map(|text| string(text.as_ref())).collect();
        self.pair(key, 9, &array(8, values.len() as u64, &elements))
    }

    /// A tensor with its data; `shape` innermost first, as in the file.
    pub fn tensor(mut self, name: &str, shape: &[u64], id: u32, data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0xEE);
        let offset = self.data.len() as u64;
        self.data.extend(data);
        self.description(name, shape, id, offset)
    }

    /// Only the description of a tensor.
    pub fn description(
        mut self,
        name: impl AsRef<[u8]>,
        shape: &[u64],
        id: u32,
        offset: u64,
    ) -> Self {
        let mut bytes = string(name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        bytes.extend(shape.iter().flat_map(|d| d.to_le_bytes()));
        bytes.extend(id.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        self.tensors.push(bytes);
        self
    }

    /// Data that no description made room for.
    pub fn data(mut self, bytes: usize) -> Self {
        self.data.resize(self.data.len() + bytes, 0xEE);
        self
    }

    pub fn finish(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        bytes.extend(self.pairs.concat());
        bytes.extend(self.tensors.concat());
        if !self.data.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(&self.data);
        }
        bytes
    }
}
