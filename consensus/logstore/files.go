package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/lni/dragonboat/v4/config"
)

// checkFiles reads pebble's write-ahead logs and its manifest before pebble does, which takes the first record that it cannot read for
// the end and then deletes the files. A record that cannot be read, with later ones of the same file behind it, is damage in the middle.
// A power failure may leave such a hole too, where the disk wrote later sectors first; those read as zeros, as in etcd's log.
//
// Error: ErrDamaged, naming file and offset; nothing has been changed then.
func checkFiles(fs config.IFS, dirs ...string) error {
	seen := map[string]bool{}
	for _, dir := range dirs {
		if seen[dir] {
			continue
		}
		seen[dir] = true
		names, err := fs.List(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("log store: %w", err)
		}
		for _, name := range names {
			number, isLog := logNumber(name)
			if !isLog && !strings.HasPrefix(name, "MANIFEST-") {
				continue
			}
			if err := checkFile(fs, fs.PathJoin(dir, name), number); err != nil {
				return err
			}
		}
	}
	return nil
}

func logNumber(name string) (uint32, bool) {
	digits, isLog := strings.CutSuffix(name, ".log")
	n, err := strconv.ParseUint(digits, 10, 64)
	return uint32(n), isLog && err == nil
}

func checkFile(fs config.IFS, path string, number uint32) error {
	f, err := fs.Open(path)
	if err != nil {
		return fmt.Errorf("log store: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("log store: %s: %w", path, err)
	}
	if at, ok := firstHole(b, number); !ok {
		return fmt.Errorf("%w: %s cannot be read at offset %d, and records of later writes follow", ErrDamaged, path, at)
	}
	return nil
}

// pebble's log format, which is LevelDB's with a log number: blocks of 32 KiB, in them chunks of checksum (4 bytes), length (2), type
// (1) and, for types 5 to 8, the log's number (4). See the package documentation of pebble's record.
const (
	logBlock       = 32 << 10
	shortHeader    = 7
	longHeader     = 11
	firstLongType  = 5
	lastChunkType  = 8
	sector         = 512
	checksumOffset = 0xa282ead8
)

type chunkKind int

const (
	chunkGood chunkKind = iota
	chunkEnd            // zeros, or the rest of an older log in a recycled file
	chunkBad
)

// readChunk reads the chunk at offset at; next is where the one behind it begins.
func readChunk(b []byte, at int, number uint32) (kind chunkKind, next int) {
	blockEnd := min(len(b), (at/logBlock+1)*logBlock)
	if at+shortHeader > blockEnd {
		return chunkGood, blockEnd
	}
	sum, length, typ := binary.LittleEndian.Uint32(b[at:]), int(binary.LittleEndian.Uint16(b[at+4:])), b[at+6]
	if sum == 0 && length == 0 && typ == 0 {
		if at+longHeader > blockEnd {
			return chunkGood, blockEnd
		}
		return chunkEnd, 0
	}
	header := shortHeader
	if typ >= firstLongType && typ <= lastChunkType {
		header = longHeader
		if at+header > blockEnd {
			return chunkBad, 0
		}
		if binary.LittleEndian.Uint32(b[at+7:]) != number {
			return chunkEnd, 0
		}
	}
	end := at + header + length
	if typ == 0 || typ > lastChunkType || end > blockEnd || sum != maskedSum(b[at+6:end]) {
		return chunkBad, 0
	}
	return chunkGood, end
}

func maskedSum(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + checksumOffset
}

// firstHole finds a place that cannot be read with readable chunks of the same log behind it and no lost sector between; ok is true if
// there is none.
func firstHole(b []byte, number uint32) (at int, ok bool) {
	for at < len(b) {
		kind, next := readChunk(b, at, number)
		if kind != chunkGood {
			break
		}
		at = next
	}
	for later := at + 1; later+shortHeader <= len(b); later++ {
		if !plausible(b, later, number) {
			continue
		}
		if kind, next := readChunk(b, later, number); kind == chunkGood && next > later+shortHeader {
			return at, lostSector(b[at:later], at)
		}
	}
	return at, true
}

// plausible is a cheap look at a header before its checksum is computed.
func plausible(b []byte, at int, number uint32) bool {
	length, typ := int(binary.LittleEndian.Uint16(b[at+4:])), b[at+6]
	if length == 0 || typ == 0 || typ > lastChunkType || at+shortHeader+length > len(b) {
		return false
	}
	if typ >= firstLongType {
		return at+longHeader <= len(b) && binary.LittleEndian.Uint32(b[at+7:]) == number
	}
	return number == 0 // a manifest; logs are written with numbers only
}

// lostSector says whether a whole sector of the range, which begins at the given offset of its file, is zero.
func lostSector(b []byte, offset int) bool {
	for from := (sector - offset%sector) % sector; from+sector <= len(b); from += sector {
		zero := true
		for _, v := range b[from : from+sector] {
			zero = zero && v == 0
		}
		if zero {
			return true
		}
	}
	return false
}
