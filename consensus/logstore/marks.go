package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"sync"

	"github.com/lni/dragonboat/v4/config"
)

// Marks remember beside the log what each replica has promised: its term and vote, and the last entry that it has acknowledged. They
// are written after the log has been synced and before anybody is told, so a mark never says more than the log holds, and a log that
// says less than its mark has lost something. They are not synced as they grow: the kernel keeps them over the death of the process, and
// a power failure can only make them older, which is harmless. One that has to say less is synced before the log may (lower). A slot holds two copies that are written in turn, so one torn by a crash
// leaves the other.
const (
	marksFile   = "acknowledged"
	marksMagic  = "SHOALMK1"
	markCopy    = 64
	markSlot    = 2 * markCopy
	markPayload = 48
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mark is what a replica has promised.
type mark struct {
	term, vote, last uint64
}

func (m mark) empty() bool { return m == mark{} }

type slot struct {
	mark
	at  int64 // offset in the file
	seq uint64
}

// marks owns the file of marks.
type marks struct {
	mu    sync.Mutex
	file  markFile
	close func() error
	slots map[node]*slot
	free  []int64
	end   int64
}

type markFile interface {
	io.WriterAt
	Sync() error
}

// openMarks reads the marks of dir and begins a new file with them. Slots that cannot be read are dropped and logged: they protect the
// log, they do not hold it.
func openMarks(fs config.IFS, dir string, log *slog.Logger) (*marks, error) {
	path := fs.PathJoin(dir, marksFile)
	old, err := readMarks(fs, path, log)
	if err != nil {
		return nil, fmt.Errorf("marks of acknowledged log entries: %w", err)
	}
	m := &marks{slots: map[node]*slot{}, end: markSlot}
	content := make([]byte, markSlot, markSlot*(1+len(old)))
	copy(content, marksMagic)
	for n, known := range old {
		s := &slot{mark: known, at: m.end, seq: 1}
		m.slots[n], m.end = s, m.end+markSlot
		content = append(content, make([]byte, markCopy)...)
		content = append(content, encodeMark(n, *s)...)
	}
	if err := writeNew(fs, path+".new", content); err != nil {
		return nil, fmt.Errorf("marks of acknowledged log entries: %w", err)
	}
	f, err := fs.ReuseForWrite(path+".new", path)
	if err != nil {
		return nil, fmt.Errorf("marks of acknowledged log entries: %w", err)
	}
	m.file, m.close = f, func() error { return errors.Join(f.Sync(), f.Close()) }
	return m, nil
}

func writeNew(fs config.IFS, path string, content []byte) error {
	f, err := fs.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func readMarks(fs config.IFS, path string, log *slog.Logger) (map[node]mark, error) {
	found := map[node]mark{}
	f, err := fs.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	if len(b) < markSlot || string(b[:len(marksMagic)]) != marksMagic {
		log.Error("the marks of acknowledged log entries cannot be read and start anew", "file", path)
		return found, nil
	}
	for b = b[markSlot:]; len(b) > 0; b = b[min(markSlot, len(b)):] {
		slotBytes := make([]byte, markSlot) // the last one may be cut short
		copy(slotBytes, b)
		n, known, ok := newest(slotBytes)
		switch {
		case ok && !known.empty():
			found[n] = known
		case !ok && string(slotBytes) != string(make([]byte, markSlot)):
			log.Error("a mark of acknowledged log entries cannot be read and starts anew", "file", path)
		}
	}
	return found, nil
}

// newest picks the later of a slot's copies that can be read.
func newest(b []byte) (n node, found mark, ok bool) {
	best := uint64(0)
	for _, c := range [][]byte{b[:markCopy], b[markCopy:]} {
		if crc32.Checksum(c[:markPayload], castagnoli) != binary.LittleEndian.Uint32(c[markPayload:]) {
			continue
		}
		field := func(i int) uint64 { return binary.LittleEndian.Uint64(c[8*i:]) }
		if seq := field(0); seq > best {
			best, ok = seq, true
			n, found = node{field(1), field(2)}, mark{term: field(3), vote: field(4), last: field(5)}
		}
	}
	return n, found, ok
}

func encodeMark(n node, s slot) []byte {
	b := make([]byte, 0, markCopy)
	for _, v := range []uint64{s.seq, n.shard, n.replica, s.term, s.vote, s.last} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return b[:markCopy]
}

func (m *marks) get(n node) mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.slots[n]; ok {
		return s.mark
	}
	return mark{}
}

// lower writes a mark that says less than the one before, durably: otherwise a power failure could bring the old one back to a log that
// rightly became shorter.
func (m *marks) lower(n node, to mark) error {
	if m.get(n) == to {
		return nil
	}
	return errors.Join(m.set(n, to), m.file.Sync())
}

// set writes a replica's mark where it differs. The empty mark frees its slot.
func (m *marks) set(n node, to mark) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.slots[n]
	if !ok {
		if to.empty() {
			return nil
		}
		s = &slot{at: m.end}
		if last := len(m.free) - 1; last >= 0 {
			s.at, m.free = m.free[last], m.free[:last]
		} else {
			m.end += markSlot
		}
		m.slots[n] = s
	}
	if s.mark == to {
		return nil
	}
	s.mark = to
	s.seq++
	content := encodeMark(n, *s)
	if to.empty() {
		content = make([]byte, markSlot)
		delete(m.slots, n)
		m.free = append(m.free, s.at)
		_, err := m.file.WriteAt(content, s.at)
		return err
	}
	if !ok { // a new slot is written whole: file systems in memory know no holes
		_, err := m.file.WriteAt(append(make([]byte, markCopy), content...), s.at)
		return err
	}
	_, err := m.file.WriteAt(content, s.at+int64(s.seq%2)*markCopy)
	return err
}
