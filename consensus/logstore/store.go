package logstore

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
)

// options of a store.
type options struct {
	segmentBytes int64
	failed       func(error)
	log          *slog.Logger
}

// Store implements raftio.ILogDB.
type Store struct {
	fs    config.IFS
	dir   string
	opts  options
	marks *marks

	mu   sync.Mutex
	cond *sync.Cond
	// err is the first failure of the disk. A failed sync may have dropped what it did not write, so nothing is tried again.
	err    error
	closed bool
	groups map[node]*group
	// segments are the files, oldest first; the last is appended to.
	segments []*segment
	// pending are the frames that are not written yet, in order; spare is a buffer for the next.
	pending []frame
	spare   []byte
	// Frames count up: appended is the one that is being filled, durable the newest one that is synced.
	appended, durable uint64
	flushing          bool

	reclaiming sync.WaitGroup
	wake       chan struct{}
}

var _ raftio.ILogDB = (*Store)(nil)

// frame is a frame to write; b begins with room for its header.
type frame struct {
	seg *segment
	off int64
	b   []byte
}

// open reads the store in the folder, which is made if it is missing.
func open(fs config.IFS, dir string, opts options) (*Store, error) {
	if opts.segmentBytes == 0 {
		opts.segmentBytes = 16 << 20
	}
	if opts.log == nil {
		opts.log = slog.Default()
	}
	s := &Store{fs: fs, dir: dir, opts: opts, groups: map[node]*group{}, wake: make(chan struct{}, 1)}
	s.cond = sync.NewCond(&s.mu)
	if err := errors.Join(fs.MkdirAll(dir, 0o700), syncDir(fs, fs.PathDir(dir))); err != nil {
		return nil, fmt.Errorf("log store: %w", err)
	}
	var err error
	if s.marks, err = openMarks(fs, dir, opts.log); err != nil {
		return nil, err
	}
	if err := s.replay(); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	// What an earlier start left is never appended to: its end may be torn.
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roll()
	if err := s.flush(); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	s.reclaiming.Go(s.reclaim)
	return s, nil
}

// Name is that of dragonboat's own store, whose folders are taken over.
func (s *Store) Name() string { return "sharded-pebble" }

// BinaryFormat is that of dragonboat's own store, too.
func (s *Store) BinaryFormat() uint32 { return raftio.PlainLogDBBinVersion }

// failed reports a failed write and does not return then: what was to be durable may not be, so nobody may be told that it is.
func (s *Store) failed(err error) error {
	if err != nil && s.opts.failed != nil {
		s.opts.failed(err)
		select {}
	}
	return err
}

// Close writes what is not written yet and closes the files.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	for _, g := range s.sortedGroups() {
		if g.behind {
			s.write(0, g.appendBehind)
		}
	}
	err := s.flush()
	s.closed = true
	s.mu.Unlock()
	s.wakeReclaim()
	s.reclaiming.Wait()
	return errors.Join(err, s.closeFiles())
}

func (s *Store) closeFiles() error {
	errs := []error{s.marks.close()}
	for _, f := range s.segments {
		errs = append(errs, f.close())
	}
	return errors.Join(errs...)
}

// group is the known group or a new one.
func (s *Store) group(k node) *group {
	g, ok := s.groups[k]
	if !ok {
		g = newGroup(k)
		s.groups[k] = g
	}
	return g
}

func (s *Store) sortedGroups() []*group {
	all := make([]*group, 0, len(s.groups))
	for _, g := range s.groups {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b *group) int {
		return cmp.Or(cmp.Compare(a.node.shard, b.node.shard), cmp.Compare(a.node.replica, b.node.replica))
	})
	return all
}

func (s *Store) current() *segment { return s.segments[len(s.segments)-1] }

// roll begins the next segment with a checkpoint of all groups.
func (s *Store) roll() {
	number := uint64(1)
	if len(s.segments) > 0 {
		number = s.current().number + 1
	}
	next := &segment{number: number, name: segmentName(s.fs, s.dir, number), room: s.opts.segmentBytes}
	s.segments = append(s.segments, next)
	s.beginFrame()
	f := &s.pending[len(s.pending)-1]
	f.b = append(f.b, opSegment)
	f.b = binary.AppendUvarint(f.b, formatVersion)
	f.b = binary.AppendUvarint(f.b, number)
	for _, g := range s.sortedGroups() {
		f.b = g.appendCheckpoint(f.b)
		g.behind = false
	}
	next.size = f.off + int64(len(f.b))
	s.wakeReclaim()
}

func (s *Store) wakeReclaim() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// beginFrame adds an empty frame to what is pending.
func (s *Store) beginFrame() {
	to := s.current()
	buffer := s.spare
	s.spare = nil
	if buffer == nil {
		buffer = make([]byte, 0, 64<<10)
	}
	s.appended++
	s.pending = append(s.pending, frame{seg: to, off: to.size, b: buffer[:frameHeader]})
	to.size += frameHeader
}

// write appends operations to the frame that goes to the disk next. bytes is about how much they are, so that they are not torn between
// two segments. appendTo gets the frame so far and returns it with the operations; what they change it changes only then, because the
// checkpoint of a new segment must not tell what comes after it.
func (s *Store) write(bytes int, appendTo func(b []byte) []byte) {
	if now := s.current(); now.size+int64(bytes) > s.opts.segmentBytes && now.size > s.opts.segmentBytes/4 {
		s.roll()
	}
	if n := len(s.pending); n == 0 || s.pending[n-1].seg != s.current() || len(s.pending[n-1].b)+bytes > maxFrame/2 {
		s.beginFrame()
	}
	f := &s.pending[len(s.pending)-1]
	f.b = appendTo(f.b)
	f.seg.size = f.off + int64(len(f.b))
	if len(f.b) == frameHeader {
		// There was nothing to say after all, and an empty frame would read as the end of the file.
		f.seg.size = f.off
		s.spare, s.pending = f.b, s.pending[:len(s.pending)-1]
		s.appended--
	}
}

// flush makes everything that was appended durable. Whoever comes while another flushes waits, and the next flush takes all who waited.
func (s *Store) flush() error {
	upTo := s.appended
	for s.durable < upTo && s.err == nil {
		if s.flushing {
			s.cond.Wait()
			continue
		}
		frames := s.pending
		last := s.appended
		s.pending, s.flushing = nil, true
		s.mu.Unlock()
		err := s.writeFrames(frames)
		s.mu.Lock()
		s.flushing = false
		if err != nil {
			s.err = fmt.Errorf("log store %s: %w", s.dir, err)
		} else {
			s.durable = last
			for _, f := range frames {
				f.seg.written = f.off + int64(len(f.b))
			}
			if b := frames[len(frames)-1].b; cap(b) <= 4<<20 {
				s.spare = b
			}
		}
		s.cond.Broadcast()
	}
	return s.err
}

func (s *Store) writeFrames(frames []frame) error {
	for _, f := range frames {
		fresh := f.seg.w == nil
		if fresh {
			if err := f.seg.create(s.fs, max(s.opts.segmentBytes, int64(len(f.b)))); err != nil {
				return err
			}
		}
		sealFrame(f.b, f.seg.number)
		if _, err := f.seg.w.WriteAt(f.seg.withZeros(f), f.off); err != nil {
			return err
		}
		if err := syncData(f.seg.w); err != nil {
			return fmt.Errorf("sync %s: %w", f.seg.name, err)
		}
		if fresh {
			if err := syncDir(s.fs, s.dir); err != nil {
				return fmt.Errorf("sync %s: %w", s.dir, err)
			}
		}
	}
	return nil
}
