package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/vfs"
)

const (
	frameHeader = 8
	// maxFrame is what one frame may hold: several of dragonboat's largest batches.
	maxFrame      = 512 << 20
	segmentSuffix = ".segment"
)

// segment is one file. Its fields belong to the store's mutex, but number and name, which never change, and
// zeroed, which belongs to whoever flushes.
type segment struct {
	number uint64
	name   string
	// size is where the next frame begins, counting what is not written yet; written is how much of it a reader finds in the file.
	size, written int64
	// room is how large the file is.
	room int64
	// zeroed is how far zeros, if nothing else, have been written.
	zeroed int64
	// live counts the bytes of entries that some group still has.
	live int64
	// w is nil for segments of an earlier start, r until the file is there.
	w, r vfs.File
	// readers keeps the file open while it is read.
	readers int
}

func segmentName(fs config.IFS, dir string, number uint64) string {
	return fs.PathJoin(dir, fmt.Sprintf("%016x%s", number, segmentSuffix))
}

// segmentNumber is the inverse of segmentName's last element.
func segmentNumber(name string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	number, err := strconv.ParseUint(hex, 16, 64)
	return number, err == nil
}

// create makes the file, with room for size bytes where the file system can set it aside: appending then changes no metadata, which a sync
// would have to write too.
func (s *segment) create(fs config.IFS, size int64) (err error) {
	if s.w, err = fs.Create(s.name); err != nil {
		return err
	}
	if err := preallocate(s.w, size); err != nil {
		return fmt.Errorf("set %d bytes aside for %s: %w", size, s.name, err)
	}
	s.r, err = fs.Open(s.name)
	return err
}

// What lies ahead of small frames is written with them, as the zeros that it reads as anyway: the first write to a block that was only set
// aside changes metadata, which its sync writes too. For large frames that would be one in few, and the zeros cost as much.
const (
	smallFrame = 16 << 10
	zerosAhead = 48 << 10
)

var zeros [zerosAhead]byte

// withZeros is what to write for a frame.
func (s *segment) withZeros(f frame) []byte {
	end := f.off + int64(len(f.b))
	if len(f.b) > smallFrame || end <= s.zeroed || end >= s.room {
		return f.b
	}
	s.zeroed = min(end+zerosAhead, s.room)
	return append(f.b, zeros[:s.zeroed-end]...)
}

func (s *segment) close() error {
	var errs []error
	for _, f := range []vfs.File{s.w, s.r} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	s.w, s.r = nil, nil
	return errors.Join(errs...)
}

func syncDir(fs config.IFS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// sealFrame fills in the header of a frame that was built with frameHeader bytes left free in front.
func sealFrame(frame []byte, segment uint64) {
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-frameHeader))
	binary.LittleEndian.PutUint32(frame[4:], frameSum(frame[frameHeader:], segment))
}

func frameSum(payload []byte, segment uint64) uint32 {
	var number [8]byte
	binary.LittleEndian.PutUint64(number[:], segment)
	return crc32.Update(crc32.Checksum(number[:], castagnoli), castagnoli, payload)
}

// frameAt is the payload of the frame that begins at the offset; ok is false if there is none that can be read.
func frameAt(file []byte, offset int64, segment uint64) (payload []byte, ok bool) {
	if int64(len(file))-offset < frameHeader {
		return nil, false
	}
	rest := file[offset:]
	size := int64(binary.LittleEndian.Uint32(rest))
	if size == 0 || size > maxFrame || size > int64(len(rest))-frameHeader {
		return nil, false
	}
	payload = rest[frameHeader : frameHeader+size]
	return payload, frameSum(payload, segment) == binary.LittleEndian.Uint32(rest[4:])
}

// readAll reads a whole file.
func readAll(fs config.IFS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, info.Size())
	_, err = io.ReadFull(f, b)
	return b, err
}

// nextFrame finds the next readable frame behind an unreadable one, ok is false if there is none. Where the length is right, the next
// follows directly; otherwise the length itself may be what is damaged.
func nextFrame(file []byte, offset int64, segment uint64) (at int64, ok bool) {
	rest := file[offset:]
	if len(rest) < frameHeader {
		return 0, false
	}
	if end := offset + frameHeader + int64(binary.LittleEndian.Uint32(rest)); end < int64(len(file)) {
		if _, ok := frameAt(file, end, segment); ok {
			return end, true
		}
	}
	for at := offset + 1; at < int64(len(file))-frameHeader; at++ {
		if kind := file[at+frameHeader]; kind < opSegment || kind > opRemove {
			continue // saves most of the checksums
		}
		if _, ok := frameAt(file, at, segment); ok {
			return at, true
		}
	}
	return 0, false
}

const sector = 512

// torn tells whether an unreadable frame at the very end was being written when the machine stopped: then some of its sectors still hold
// the zeros they were set aside with, or the file ends before it. If not, it was written and is damaged. What cannot be told from a torn
// frame is a damaged one with a whole sector of zeros in what it holds.
func torn(file []byte, offset int64) bool {
	rest := file[offset:]
	if len(rest) < frameHeader {
		return true
	}
	size := int64(binary.LittleEndian.Uint32(rest))
	if size > int64(len(rest))-frameHeader {
		return true
	}
	return size == 0 || hasEmptySector(file, offset, offset+frameHeader+size)
}

// hasEmptySector tells whether a part of the file in [from, to) that one sector holds is all zeros.
func hasEmptySector(file []byte, from, to int64) bool {
	for from < to {
		next := min((from/sector+1)*sector, to)
		if allZero(file[from:next]) {
			return true
		}
		from = next
	}
	return false
}

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
