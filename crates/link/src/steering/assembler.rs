//! Owns the little of eBPF that the steering program needs: instructions as 64-bit words, jumps to
//! labels. Called by `steering.rs`. Pure. Read RFC 9669; loads from the packet (its section 5.3.3's
//! legacy instructions) take the context from register 6, lose registers 1 to 5, leave the value in
//! register 0 in the machine's order, and end the program with 0 when they go beyond the packet.

/// One of the registers 0 to 9.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Register(pub(super) u8);

/// A place to jump to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Label(usize);

/// How much a load takes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Width {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
}

/// A program that grows.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<u64>,
    /// Where each label lies, once placed.
    labels: Vec<Option<usize>>,
    /// Jumps: which instruction goes to which label.
    jumps: Vec<(usize, Label)>,
}

const CONTEXT: Register = Register(6);
const NOWHERE: Register = Register(0);

const LD_ABS: u8 = 0x20;
const LD_IND: u8 = 0x40;
const LD_IMM_DW: u8 = 0x18;
const LDX_MEM_HALF: u8 = 0x69;
/// The source of a wide load: the value of a map whose descriptor it names.
const MAP_VALUE: Register = Register(2);
const ALU64: u8 = 0x07;
const JMP: u8 = 0x05;
/// The second operand is a register.
const X: u8 = 0x08;
const ADD: u8 = 0x00;
const MUL: u8 = 0x20;
const OR: u8 = 0x40;
const AND: u8 = 0x50;
const LSH: u8 = 0x60;
const RSH: u8 = 0x70;
const XOR: u8 = 0xa0;
const MOV: u8 = 0xb0;
const JA: u8 = 0x00;
const JEQ: u8 = 0x10;
const JNE: u8 = 0x50;
const EXIT: u8 = 0x90;

impl Assembler {
    /// A place to be decided later.
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub(super) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// Saves the context where loads look for it. Must come first.
    pub(super) fn keep_context(&mut self) {
        self.copy(CONTEXT, Register(1));
    }

    pub(super) fn load_absolute(&mut self, width: Width, at: i32) {
        self.push(LD_ABS | width as u8, NOWHERE, NOWHERE, at);
    }

    pub(super) fn load(&mut self, width: Width, base: Register, at: i32) {
        self.push(LD_IND | width as u8, NOWHERE, base, at);
    }

    pub(super) fn set(&mut self, target: Register, value: i32) {
        self.push(ALU64 | MOV, target, NOWHERE, value);
    }

    pub(super) fn set_wide(&mut self, target: Register, value: u64) {
        self.push(LD_IMM_DW, target, NOWHERE, value as i32);
        self.push(0, NOWHERE, NOWHERE, (value >> 32) as i32);
    }

    /// The address of the only value of a map.
    pub(super) fn set_map_value(&mut self, target: Register, map: i32) {
        self.push(LD_IMM_DW, target, MAP_VALUE, map);
        self.push(0, NOWHERE, NOWHERE, 0);
    }

    /// Two bytes of memory, in the machine's order.
    pub(super) fn load_half_at(&mut self, target: Register, address: Register) {
        self.push(LDX_MEM_HALF, target, address, 0);
    }

    pub(super) fn copy(&mut self, target: Register, source: Register) {
        self.push(ALU64 | MOV | X, target, source, 0);
    }

    pub(super) fn add(&mut self, target: Register, value: i32) {
        self.push(ALU64 | ADD, target, NOWHERE, value);
    }

    pub(super) fn and(&mut self, target: Register, value: i32) {
        self.push(ALU64 | AND, target, NOWHERE, value);
    }

    pub(super) fn shift_left(&mut self, target: Register, bits: i32) {
        self.push(ALU64 | LSH, target, NOWHERE, bits);
    }

    pub(super) fn shift_right(&mut self, target: Register, bits: i32) {
        self.push(ALU64 | RSH, target, NOWHERE, bits);
    }

    pub(super) fn add_register(&mut self, target: Register, source: Register) {
        self.push(ALU64 | ADD | X, target, source, 0);
    }

    pub(super) fn multiply_register(&mut self, target: Register, source: Register) {
        self.push(ALU64 | MUL | X, target, source, 0);
    }

    pub(super) fn xor_register(&mut self, target: Register, source: Register) {
        self.push(ALU64 | XOR | X, target, source, 0);
    }

    pub(super) fn or_register(&mut self, target: Register, source: Register) {
        self.push(ALU64 | OR | X, target, source, 0);
    }

    pub(super) fn jump(&mut self, label: Label) {
        self.push_jump(JMP | JA, NOWHERE, 0, label);
    }

    pub(super) fn jump_if_equal(
        &mut self,
        register: Register,
        value: impl Into<i32>,
        label: Label,
    ) {
        self.push_jump(JMP | JEQ, register, value.into(), label);
    }

    pub(super) fn jump_unless_equal(
        &mut self,
        register: Register,
        value: impl Into<i32>,
        label: Label,
    ) {
        self.push_jump(JMP | JNE, register, value.into(), label);
    }

    pub(super) fn exit(&mut self) {
        self.push(JMP | EXIT, NOWHERE, NOWHERE, 0);
    }

    /// The program, with its jumps resolved.
    ///
    /// # Panics
    /// When a label that is jumped to was never placed: a mistake of this crate.
    pub(super) fn finish(mut self) -> Vec<u64> {
        for (at, label) in &self.jumps {
            let target = self.labels[label.0].expect("every label is placed");
            let distance = target as i64 - *at as i64 - 1;
            self.code[*at] |= u64::from(distance as i16 as u16) << 16;
        }
        self.code
    }

    fn push_jump(&mut self, code: u8, register: Register, value: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(code, register, NOWHERE, value);
    }

    /// `struct bpf_insn` as a number of a little-endian machine.
    fn push(&mut self, code: u8, target: Register, source: Register, value: i32) {
        let registers = u64::from(target.0 | source.0 << 4) << 8;
        self.code.push(u64::from(code) | registers | u64::from(value as u32) << 32);
    }
}
