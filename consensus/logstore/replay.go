package logstore

import (
	"fmt"
	"slices"

	"github.com/lni/dragonboat/v4/raftpb"
)

// replay reads all segments and makes the index from them. Damage is reported and stepped over: whose it is shows in the numbers of the
// operations, in the checkpoints and in the marks.
func (s *Store) replay() error {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return fmt.Errorf("log store: %w", err)
	}
	var numbers []uint64
	for _, name := range names {
		if number, ok := segmentNumber(s.fs.PathBase(name)); ok {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	for i, number := range numbers {
		if i > 0 && number != numbers[i-1]+1 {
			s.opts.log.Error("files of the log store are missing", "folder", s.dir, "after", segmentName(s.fs, s.dir, numbers[i-1]))
		}
		seg := &segment{number: number, name: segmentName(s.fs, s.dir, number)}
		if err := s.replaySegment(seg, i == len(numbers)-1); err != nil {
			return err
		}
		s.segments = append(s.segments, seg)
		if seg.r, err = s.fs.Open(seg.name); err != nil {
			return fmt.Errorf("log store: %w", err)
		}
	}
	for _, g := range s.sortedGroups() {
		g.put()
		if g.damage = g.check(); g.damage == nil {
			g.damage = g.compare(s.marks.get(g.node))
		}
	}
	return nil
}

// replaySegment applies the frames of one segment.
func (s *Store) replaySegment(seg *segment, last bool) error {
	file, err := readAll(s.fs, seg.name)
	if err != nil {
		return fmt.Errorf("log store: read %s: %w", seg.name, err)
	}
	for {
		payload, ok := frameAt(file, seg.size, seg.number)
		if !ok {
			next, follows := nextFrame(file, seg.size, seg.number)
			if !follows {
				break
			}
			s.opts.log.Error("a part of the log store cannot be read", "file", seg.name, "from", seg.size, "to", next)
			seg.size = next
			continue
		}
		if err := s.replayFrame(seg, payload); err != nil {
			return err
		}
		seg.size += frameHeader + int64(len(payload))
	}
	seg.written, seg.room = seg.size, int64(len(file))
	switch {
	case allZero(file[seg.size:]):
	case last && torn(file, seg.size):
		s.opts.log.Warn("the log store ends in a write that was not finished; nobody was told of it", "file", seg.name, "at", seg.size)
	case last:
		return fmt.Errorf("%w: %s, byte %d: its last frame cannot be read although all of it was written", ErrDamaged, seg.name, seg.size)
	default:
		// The end of an earlier start may be torn; if it is not, the checkpoint that follows knows of more operations.
		s.opts.log.Warn("the end of a file of the log store cannot be read", "file", seg.name, "from", seg.size)
	}
	return nil
}

// replayFrame applies a frame's operations to the index. Errors are about what the checksum has already vouched for.
func (s *Store) replayFrame(seg *segment, payload []byte) error {
	d := &decoder{b: payload}
	for d.more() {
		if kind := d.byte(); kind == opSegment {
			if version := d.uvarint(); version > formatVersion {
				return fmt.Errorf("%w: %s has format %d, this version knows %d: start a newer version", ErrNewer, seg.name, version, formatVersion)
			}
			d.uvarint() // its number, which the checksums have confirmed
		} else {
			s.replayOp(d, kind, seg)
		}
	}
	if d.err != nil {
		return fmt.Errorf("%w: %s, frame at byte %d: %w", ErrDamaged, seg.name, seg.size, d.err)
	}
	return nil
}

func (s *Store) replayOp(d *decoder, kind byte, seg *segment) {
	n, operation := d.node(), d.uvarint()
	if d.err != nil {
		return
	}
	g, had := s.groups[n], s.groups[n] != nil
	if g == nil {
		g = s.group(n)
	}
	expected := g.operation + 1
	if kind == opGroup {
		// The first that is heard of a replica may be a checkpoint.
		if expected = g.operation; !had {
			expected = operation
		}
	}
	if operation != expected && g.damage == nil {
		g.damage = damaged(n, "of what was written about it, the parts %d to %d are missing", expected, operation-1)
	}
	g.operation = operation
	switch kind {
	case opGroup:
		g.readCheckpoint(d)
	case opBootstrap:
		g.bootstrap = &raftpb.Bootstrap{}
		d.message(g.bootstrap)
	case opState:
		g.state = d.state()
	case opSnapshot:
		g.snapshot = raftpb.Snapshot{}
		d.message(&g.snapshot)
	case opRestart:
		g.restart(d.uvarint())
	case opCompact:
		g.compact(d.uvarint())
	case opEntries, opMoved:
		s.replayRun(d, kind, g, seg)
	case opRemove:
		g.set(nil)
		delete(s.groups, n)
	default:
		d.fail(fmt.Sprintf("operation of kind %d", kind))
	}
}

func (s *Store) replayRun(d *decoder, kind byte, g *group, seg *segment) {
	r := d.run(seg, seg.size+frameHeader)
	if d.err != nil {
		return
	}
	if kind == opMoved {
		if r = r.from(g.first).to(g.last); r.count > 0 {
			g.moved = append(g.moved, r)
		}
		return
	}
	if err := g.append(r); err != nil {
		if g.damage == nil {
			g.damage = err
		}
		// What comes behind the gap is kept, for whoever wants to look at it.
		g.push(r)
	}
}
