//! Machine code from an ELF relocatable object: sections into memory, relocations applied, then executable and read-only.
//!
//! Kernels call nothing but memcpy, memset and memmove, which LLVM may insert; they are reached through thunks.

use std::collections::HashMap;

use object::elf::{
    R_X86_64_32, R_X86_64_32S, R_X86_64_64, R_X86_64_GOTPCREL, R_X86_64_GOTPCRELX, R_X86_64_PC32, R_X86_64_PC64,
    R_X86_64_PLT32, R_X86_64_REX_GOTPCRELX,
};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex, SectionKind, SymbolSection,
};

use crate::artefact::KernelFn;
use crate::error::RuntimeError;

/// Loaded code; unmapped when dropped.
pub struct Code {
    base: *mut u8,
    len: usize,
    /// Addresses by symbol.
    symbols: HashMap<String, usize>,
}

// The code is read-only once loaded.
unsafe impl Send for Code {}
unsafe impl Sync for Code {}

const PAGE: usize = 4096;
/// `jmp [rip]`, the target's address behind it: 16 bytes with padding; also a GOT slot at offset 8.
const THUNK: usize = 16;

fn externals() -> [(&'static str, usize); 3] {
    [
        ("memcpy", libc::memcpy as *const () as usize),
        ("memset", libc::memset as *const () as usize),
        ("memmove", libc::memmove as *const () as usize),
    ]
}

impl Code {
    pub fn load(bytes: &[u8]) -> Result<Code, RuntimeError> {
        let failed = |reason: String| RuntimeError::Code(reason);
        let file = object::File::parse(bytes).map_err(|e| failed(e.to_string()))?;
        if file.architecture() != object::Architecture::X86_64 || file.kind() != object::ObjectKind::Relocatable {
            return Err(failed("it is no x86-64 object".to_string()));
        }
        // Place the sections.
        let mut places: HashMap<SectionIndex, usize> = HashMap::new();
        let mut len = 0usize;
        let mut sections = vec![];
        for s in file.sections() {
            if !matches!(
                s.kind(),
                SectionKind::Text | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString
            ) || s.size() == 0
            {
                continue;
            }
            let data = s.data().map_err(|e| failed(e.to_string()))?;
            let align = usize::try_from(s.align())
                .ok()
                .filter(|a| a.is_power_of_two() && *a <= PAGE)
                .unwrap_or(64)
                .max(1);
            len = len.next_multiple_of(align);
            places.insert(s.index(), len);
            len = len
                .checked_add(data.len())
                .filter(|n| *n < 1 << 30)
                .ok_or_else(|| failed("it is too large".to_string()))?;
            sections.push((s, data));
        }
        let thunks = len.next_multiple_of(THUNK);
        let len = (thunks + externals().len() * THUNK).next_multiple_of(PAGE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(RuntimeError::OutOfMemory { bytes: len });
        }
        let mut code = Code {
            base: base as *mut u8,
            len,
            symbols: HashMap::new(),
        };
        let memory = unsafe { std::slice::from_raw_parts_mut(code.base, len) };
        for (s, data) in &sections {
            memory[places[&s.index()]..][..data.len()].copy_from_slice(data);
        }
        for (i, (_, address)) in externals().iter().enumerate() {
            let thunk = &mut memory[thunks + i * THUNK..][..THUNK];
            // jmp qword ptr [rip + 2]
            thunk[..6].copy_from_slice(&[0xff, 0x25, 2, 0, 0, 0]);
            thunk[8..].copy_from_slice(&(*address as u64).to_le_bytes());
        }
        // Offsets of symbols in our memory.
        let symbol = |index: object::SymbolIndex| -> Result<(usize, bool), String> {
            let s = file.symbol_by_index(index).map_err(|e| e.to_string())?;
            let name = s.name().unwrap_or_default();
            match s.section() {
                SymbolSection::Section(at) => {
                    let place = places
                        .get(&at)
                        .ok_or(format!("symbol {name} lies in a section that is not loaded"))?;
                    let offset = usize::try_from(s.address())
                        .ok()
                        .and_then(|a| a.checked_add(*place))
                        .filter(|a| *a <= len);
                    Ok((offset.ok_or(format!("symbol {name} lies outside"))?, false))
                }
                _ => match externals().iter().position(|(n, _)| *n == name) {
                    Some(i) => Ok((thunks + i * THUNK, true)),
                    None => Err(format!("it wants `{name}`, which kernels may not")),
                },
            }
        };
        for (s, data) in &sections {
            let place = places[&s.index()];
            for (offset, relocation) in s.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    return Err(failed("a relocation has no symbol".to_string()));
                };
                let (target, external) = symbol(index).map_err(failed)?;
                let RelocationFlags::Elf { r_type } = relocation.flags() else {
                    return Err(failed("a relocation is not ELF's".to_string()));
                };
                let wide = matches!(r_type, R_X86_64_64 | R_X86_64_PC64);
                let size = if wide { 8 } else { 4 };
                let offset = usize::try_from(offset)
                    .ok()
                    .filter(|o| o.checked_add(size).is_some_and(|end| end <= data.len()));
                let offset = offset.ok_or_else(|| failed("a relocation lies outside its section".to_string()))?;
                let got = matches!(r_type, R_X86_64_GOTPCREL | R_X86_64_GOTPCRELX | R_X86_64_REX_GOTPCRELX);
                if got && !external {
                    return Err(failed("it wants a GOT".to_string()));
                }
                let target = target + if got { 8 } else { 0 };
                let absolute = (code.base as i64)
                    .wrapping_add(target as i64)
                    .wrapping_add(relocation.addend());
                let relative = (target as i64)
                    .wrapping_add(relocation.addend())
                    .wrapping_sub((place + offset) as i64);
                let value = match r_type {
                    R_X86_64_64 => absolute,
                    R_X86_64_PC64 | R_X86_64_PC32 | R_X86_64_PLT32 => relative,
                    R_X86_64_GOTPCREL | R_X86_64_GOTPCRELX | R_X86_64_REX_GOTPCRELX => relative,
                    R_X86_64_32 | R_X86_64_32S => return Err(failed("it is not position-independent".to_string())),
                    other => return Err(failed(format!("relocation type {other} is unknown"))),
                };
                let at = &mut memory[place + offset..][..size];
                if wide {
                    at.copy_from_slice(&value.to_le_bytes());
                } else {
                    let value = i32::try_from(value).map_err(|_| failed("a relocation is out of range".to_string()))?;
                    at.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        for s in file
            .symbols()
            .filter(|s| s.is_definition() && s.kind() == object::SymbolKind::Text)
        {
            if let (Ok(name), Ok((offset, _))) = (s.name(), symbol(s.index())) {
                code.symbols.insert(name.to_string(), code.base as usize + offset);
            }
        }
        if unsafe { libc::mprotect(base, len, libc::PROT_READ | libc::PROT_EXEC) } != 0 {
            return Err(failed(format!(
                "the system does not let it execute: {}",
                std::io::Error::last_os_error()
            )));
        }
        Ok(code)
    }

    /// The kernel of this name. What it does with its arguments is up to the code: only load what was hashed.
    pub fn kernel(&self, name: &str) -> Option<KernelFn> {
        let address = *self.symbols.get(name)?;
        Some(unsafe { std::mem::transmute::<usize, KernelFn>(address) })
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        unsafe { libc::munmap(self.base as *mut libc::c_void, self.len) };
    }
}
