package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/lni/dragonboat/v4/raftpb"
)

// dragonboat's snapshot files: a header of 1 KiB (length, SnapshotHeader), blocks of 2 MiB with their CRC-32 behind them, the last one
// shorter, and 16 bytes of tail. dragonboat itself ends the process when it meets a block that does not fit its checksum, so files are
// looked through before it opens them.
const (
	snapshotHeader  = 1 << 10
	snapshotBlock   = 2 << 20
	snapshotTail    = 16
	snapshotVersion = 2
)

// snapshotPath finds a replica's snapshot file.
func snapshotPath(dir string, d diskReplica, index uint64) (string, error) {
	name := fmt.Sprintf("snapshot-%016X", index)
	pattern := filepath.Join(dir, "raft", "*", "*", "snapshot-part-*", fmt.Sprintf("snapshot-%d-%d", d.Shard, d.Replica), name, name+".gbsnap")
	found, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", fmt.Errorf("its snapshot file %s is gone", pattern)
	}
	return found[0], nil
}

// checkSnapshotFile reads the file through. The error names it and the offset.
func checkSnapshotFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := checkSnapshot(f, info.Size()); err != nil {
		return fmt.Errorf("snapshot file %s: %w", path, err)
	}
	return nil
}

func checkSnapshot(r io.Reader, size int64) error {
	head := make([]byte, snapshotHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return fmt.Errorf("its header is cut short: %w", err)
	}
	version, err := checkSnapshotHeader(head)
	if err != nil {
		return err
	}
	if version != snapshotVersion {
		return nil // an older dragonboat's: one checksum over all, in the header, which dragonboat compares
	}
	left := size - snapshotHeader - snapshotTail
	if left < 0 {
		return errors.New("it is cut short")
	}
	block := make([]byte, min(left, snapshotBlock+crc32.Size))
	for at := int64(snapshotHeader); left > 0; {
		block = block[:min(left, int64(cap(block)))]
		if _, err := io.ReadFull(r, block); err != nil {
			return fmt.Errorf("at offset %d: %w", at, err)
		}
		body := len(block) - crc32.Size
		if body <= 0 || crc32.ChecksumIEEE(block[:body]) != binary.BigEndian.Uint32(block[body:]) {
			return fmt.Errorf("the block at offset %d does not match its checksum", at)
		}
		at, left = at+int64(len(block)), left-int64(len(block))
	}
	tail := make([]byte, snapshotTail)
	if _, err := io.ReadFull(r, tail); err != nil {
		return fmt.Errorf("its tail is cut short: %w", err)
	}
	if got := int64(binary.LittleEndian.Uint64(tail)); got != size-snapshotHeader-snapshotTail {
		return fmt.Errorf("its tail speaks of %d bytes and %d are there", got, size-snapshotHeader-snapshotTail)
	}
	return nil
}

func checkSnapshotHeader(head []byte) (version uint64, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("its header cannot be read: %v", r)
		}
	}()
	n := binary.LittleEndian.Uint64(head)
	if n > snapshotHeader-8 {
		return 0, errors.New("its header cannot be read")
	}
	var h raftpb.SnapshotHeader
	if err := h.Unmarshal(head[8 : 8+n]); err != nil {
		return 0, fmt.Errorf("its header cannot be read: %w", err)
	}
	want := h.HeaderChecksum
	h.HeaderChecksum = nil
	b, err := h.Marshal()
	if err != nil {
		return 0, err
	}
	if len(want) != crc32.Size || crc32.ChecksumIEEE(b) != binary.BigEndian.Uint32(want) {
		return 0, errors.New("its header does not match its checksum")
	}
	return h.Version, nil
}
