//! The hypervisor's symbols: read from the program database that the linker wrote beside `parterre.efi`, written as
//! the text file that the hypervisor names addresses with (`parterre_hw::symbols`): lines `RVA NAME`, sorted.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use pdb::{FallibleIterator, PDB, SymbolData};

/// The symbols of the image as a text file; `None` when there is no program database beside the image.
///
/// # Errors
/// When the program database is damaged.
pub fn of_image(image: &Path) -> Result<Option<String>> {
    let Some(database) = beside(image) else { return Ok(None) };
    let text =
        read(&database).with_context(|| format!("The symbols in {} cannot be read.", database.display()))?;
    Ok(Some(text))
}

/// The linker's file has underscores where cargo's has hyphens.
fn beside(image: &Path) -> Option<std::path::PathBuf> {
    let stem = image.file_stem()?.to_str()?.replace('-', "_");
    let database = image.with_file_name(format!("{stem}.pdb"));
    database.is_file().then_some(database)
}

fn read(database: &Path) -> Result<String> {
    let mut pdb = PDB::open(File::open(database)?)?;
    let addresses = pdb.address_map()?;
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    let globals = pdb.global_symbols()?;
    let mut symbols = globals.iter();
    while let Some(symbol) = symbols.next()? {
        if let Ok(SymbolData::Public(public)) = symbol.parse()
            && public.function
            && let Some(rva) = public.offset.to_rva(&addresses)
        {
            names.insert(rva.0, public.name.to_string().into_owned());
        }
    }
    let information = pdb.debug_information()?;
    let mut modules = information.modules()?;
    while let Some(module) = modules.next()? {
        let Some(module) = pdb.module_info(&module)? else { continue };
        let mut symbols = module.symbols()?;
        while let Some(symbol) = symbols.next()? {
            if let Ok(SymbolData::Procedure(procedure)) = symbol.parse()
                && let Some(rva) = procedure.offset.to_rva(&addresses)
            {
                names.entry(rva.0).or_insert_with(|| procedure.name.to_string().into_owned());
            }
        }
    }
    Ok(text(&names))
}

fn text(names: &BTreeMap<u32, String>) -> String {
    let mut text = String::new();
    for (rva, name) in names {
        // Without the hash that tells equal names of different crates apart.
        let _ = writeln!(text, "{rva:x} {:#}", rustc_demangle::demangle(name));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_sorted_and_demangled() {
        let names = BTreeMap::from([
            (0x2000, "_ZN4core3fmt5write17h0123456789abcdefE".to_owned()),
            (0x1000, "efi_main".to_owned()),
        ]);
        assert_eq!(text(&names), "1000 efi_main\n2000 core::fmt::write\n");
    }

    #[test]
    fn an_image_without_a_database_has_no_symbols() {
        assert_eq!(of_image(Path::new("/no/such/parterre-boot.efi")).unwrap(), None);
    }
}
