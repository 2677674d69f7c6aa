package logstore

import "errors"

// reclaim gives files back whose entries nobody has any more, after every new segment, until the log is closed.
func (s *Store) reclaim() {
	for range s.wake {
		s.mu.Lock()
		for s.err == nil && !s.closed && s.reclaimOldest() {
		}
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return
		}
	}
}

// reclaimOldest deletes the oldest segment if nothing in it counts any more, or if so little does that it is worth copying. It returns
// false when there is nothing to do. Only the oldest may go: a later one may hold what makes a part of an older one obsolete.
func (s *Store) reclaimOldest() bool {
	if len(s.segments) < 2 {
		return false
	}
	oldest := s.segments[0]
	if oldest.live > 0 {
		if !s.crowded() || !s.moveOut(oldest) {
			return false
		}
	}
	// What makes it superfluous, the checkpoint after it and the copies of its entries, must not be lost.
	if s.flush() != nil || s.closed || oldest.live > 0 {
		return false
	}
	for oldest.readers > 0 {
		s.cond.Wait()
	}
	s.segments = s.segments[1:]
	s.mu.Unlock()
	// Synced one by one: segments come back from a crash, if at all, without a gap between them.
	err := errors.Join(oldest.close(), s.fs.Remove(oldest.name), syncDir(s.fs, s.dir))
	s.mu.Lock()
	if err != nil {
		s.opts.log.Error("a file of the log store that nobody needs cannot be deleted", "file", oldest.name, "err", err)
	}
	return err == nil
}

// crowded tells whether the files take more than twice what lives in them, and more than a few segments.
func (s *Store) crowded() bool {
	var size, live int64
	for _, f := range s.segments {
		size, live = size+max(f.size, f.room), live+f.live
	}
	return size > 2*live+4*s.opts.segmentBytes
}

// moveOut appends the entries that live in a segment to the newest one.
func (s *Store) moveOut(from *segment) bool {
	for _, g := range s.sortedGroups() {
		for next := uint64(0); ; {
			r, ok := g.runIn(from, next)
			if !ok {
				break
			}
			data, err := s.read(r)
			if err != nil {
				s.opts.log.Error("log entries cannot be moved to a newer file", "replica", g.node.String(), "err", err)
				return false
			}
			// The mutex was free meanwhile: only what the group still has there is moved.
			if s.closed {
				return false
			}
			if s.groups[g.node] != g {
				break
			}
			if r, ok = g.sameRun(r); !ok {
				continue
			}
			s.write(len(data), func(b []byte) []byte {
				moved := r
				moved.seg = s.current()
				var at int
				b, at = appendRun(appendOp(b, opMoved, g), moved, data)
				moved.off = s.pending[len(s.pending)-1].off + int64(at)
				g.overlay(moved)
				return b
			})
			next = r.last() + 1
			// Writers are not held up by more than one run.
			if len(s.pending) > 1 || len(s.pending[0].b) > 4*runBytes {
				if s.flush() != nil {
					return false
				}
			}
		}
	}
	return true
}

// runIn is the first run of the group that stands in the segment and ends at the index or behind it.
func (g *group) runIn(s *segment, index uint64) (run, bool) {
	for _, r := range g.runs[g.find(index):] {
		if r.seg == s {
			return r, true
		}
	}
	return run{}, false
}

// sameRun is what the group has now of a run that it had.
func (g *group) sameRun(r run) (run, bool) {
	for _, now := range g.runs[g.find(r.first()):] {
		if now.seg == r.seg && now.off == r.off {
			return now, true
		}
		if now.first() > r.last() {
			break
		}
	}
	return run{}, false
}
