package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
)

// A snapshot file is: magic, version byte, then length-prefixed frames, the first
// for the head and then one per version, record and request, and at the end the
// CRC-32C of all before it. Versions are written once and referred to by their
// position: first the live ones in key order, then those only the history holds.

const (
	snapshotMagic   = "SHOALKV"
	snapshotVersion = 1
	maxFrame        = MaxValue + MaxKey + 1<<10
)

// ErrSnapshot reports a snapshot that is corrupt, cut short, of another shard or of
// an unknown version. The state it should have become is not touched.
var ErrSnapshot = errors.New("unusable snapshot")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WriteSnapshot writes the whole state, history and remembered requests included.
// The same state gives the same bytes on every replica.
func (v View) WriteSnapshot(w io.Writer) error {
	sw := &snapshotWriter{w: bufio.NewWriterSize(w, 256<<10), sum: crc32.New(castagnoli)}
	sw.raw(append([]byte(snapshotMagic), snapshotVersion))
	position := make(map[*KV]uint64, v.s.keys.Len())
	var extra []*KV
	v.Walk(Range{}, func(kv *KV) bool {
		position[kv] = uint64(len(position))
		return true
	})
	for _, rec := range v.s.history {
		for _, kv := range []*KV{rec.prev, rec.cur} {
			if _, known := position[kv]; kv != nil && !known {
				position[kv] = uint64(len(position))
				extra = append(extra, kv)
			}
		}
	}
	sw.head(v.s, len(extra))
	v.Walk(Range{}, func(kv *KV) bool { return sw.frame(AppendKV(sw.buf[:0], *kv)) })
	for _, kv := range extra {
		sw.frame(AppendKV(sw.buf[:0], *kv))
	}
	ref := func(b []byte, kv *KV) []byte {
		if kv == nil {
			return binary.AppendUvarint(b, 0)
		}
		return binary.AppendUvarint(b, position[kv]+1)
	}
	for _, rec := range v.s.history {
		b := binary.AppendVarint(sw.buf[:0], int64(rec.revision))
		sw.frame(ref(ref(b, rec.cur), rec.prev))
	}
	for _, r := range v.s.requests {
		b := append(sw.buf[:0], r.id[:]...)
		sw.frame(AppendResult(b, Result{OK: true, Revision: r.at, Revisions: r.revisions}))
	}
	return sw.finish()
}

type snapshotWriter struct {
	w   *bufio.Writer
	sum hash.Hash32
	buf []byte
	err error
}

func (sw *snapshotWriter) raw(b []byte) bool {
	if sw.err == nil {
		sw.sum.Write(b) //nolint:errcheck // a hash never fails
		_, sw.err = sw.w.Write(b)
	}
	return sw.err == nil
}

// frame writes a length-prefixed frame. b may be built on sw.buf.
func (sw *snapshotWriter) frame(b []byte) bool {
	var size [binary.MaxVarintLen64]byte
	sw.buf = b
	return sw.raw(binary.AppendUvarint(size[:0], uint64(len(b)))) && sw.raw(b)
}

func (sw *snapshotWriter) head(s *state, extra int) {
	b := binary.AppendUvarint(sw.buf[:0], s.shard)
	for _, rev := range []Revision{s.last, s.floor, s.forgotten} {
		b = binary.AppendVarint(b, int64(rev))
	}
	for _, n := range []int{s.keys.Len(), extra, len(s.history), len(s.requests)} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	sw.frame(b)
}

func (sw *snapshotWriter) finish() error {
	sum := binary.BigEndian.AppendUint32(nil, sw.sum.Sum32())
	sw.raw(sum)
	if sw.err == nil {
		sw.err = sw.w.Flush()
	}
	if sw.err != nil {
		return fmt.Errorf("write snapshot: %w", sw.err)
	}
	return nil
}

// ReadSnapshot restores a Store from what WriteSnapshot wrote. Error: ErrSnapshot.
func ReadSnapshot(r io.Reader, shard uint64, limits Limits) (*Store, error) {
	s := New(shard, limits)
	sr := &snapshotReader{r: bufio.NewReaderSize(r, 256<<10), sum: crc32.New(castagnoli)}
	if err := sr.restore(s); err != nil {
		return nil, fmt.Errorf("%w of shard %d: %w", ErrSnapshot, shard, err)
	}
	return s, nil
}

type snapshotReader struct {
	r   *bufio.Reader
	sum hash.Hash32
	buf []byte
}

func (sr *snapshotReader) restore(s *Store) error {
	intro, err := sr.raw(len(snapshotMagic) + 1)
	if err != nil {
		return err
	}
	if string(intro[:len(snapshotMagic)]) != snapshotMagic {
		return ErrMalformed
	}
	if v := intro[len(snapshotMagic)]; v != snapshotVersion {
		return fmt.Errorf("%w %d (this peer knows %d)", ErrVersion, v, snapshotVersion)
	}
	head, err := sr.frame()
	if err != nil {
		return err
	}
	d := decoder{b: head}
	shard := d.uvarint()
	s.last, s.history.floor, s.seen.forgotten = Revision(d.varint()), Revision(d.varint()), Revision(d.varint())
	live, extra, records, requests := d.uvarint(), d.uvarint(), d.uvarint(), d.uvarint()
	if err := d.finish("head"); err != nil {
		return err
	}
	if shard != s.shard {
		return fmt.Errorf("it is of shard %d", shard)
	}
	if err := sr.body(s, live, extra, records, requests); err != nil {
		return err
	}
	return sr.checksum()
}

func (sr *snapshotReader) body(s *Store, live, extra, records, requests uint64) error {
	var pool []*KV
	for i := uint64(0); i < live+extra; i++ {
		frame, err := sr.frame()
		if err != nil {
			return err
		}
		d := decoder{b: frame}
		kv := d.kv()
		if err := d.finish("version"); err != nil {
			return err
		}
		pool = append(pool, &kv)
		if i >= live {
			continue
		}
		s.keys.Load(kv.Key, &kv) // as they were written, in order
		s.size += kv.size()
		if kv.Expires != 0 {
			s.expiry.Set(expiryKey(&kv), &kv)
		}
	}
	for range records {
		frame, err := sr.frame()
		if err != nil {
			return err
		}
		rec, err := decodeRecord(frame, pool)
		if err != nil {
			return err
		}
		s.history.add(rec)
	}
	for range requests {
		frame, err := sr.frame()
		if err != nil {
			return err
		}
		var id RequestID
		if len(frame) < len(id) {
			return ErrMalformed
		}
		res, err := DecodeResult(frame[copy(id[:], frame):])
		if err != nil {
			return err
		}
		s.seen.add(id, res)
	}
	return nil
}

func decodeRecord(frame []byte, pool []*KV) (record, error) {
	d := decoder{b: frame}
	rec := record{revision: Revision(d.varint())}
	for _, to := range []**KV{&rec.cur, &rec.prev} {
		switch n := d.uvarint(); {
		case n > uint64(len(pool)):
			return rec, ErrMalformed
		case n > 0:
			*to = pool[n-1]
		}
	}
	if rec.cur == nil && rec.prev == nil {
		return rec, ErrMalformed
	}
	return rec, d.finish("record")
}

// raw reads n bytes. Memory grows with what really arrives, so that a corrupt
// length cannot ask for much.
func (sr *snapshotReader) raw(n int) ([]byte, error) {
	sr.buf = sr.buf[:0]
	for len(sr.buf) < n {
		from := len(sr.buf)
		sr.buf = append(sr.buf, make([]byte, min(n-from, 1<<20))...)
		if _, err := io.ReadFull(sr.r, sr.buf[from:]); err != nil {
			return nil, fmt.Errorf("cut short: %w", err)
		}
	}
	sr.sum.Write(sr.buf) //nolint:errcheck // a hash never fails
	return sr.buf, nil
}

func (sr *snapshotReader) frame() ([]byte, error) {
	var n uint64
	for shift := 0; ; shift += 7 {
		b, err := sr.raw(1)
		if err != nil {
			return nil, err
		}
		if shift > 28 {
			return nil, ErrMalformed
		}
		if n |= uint64(b[0]&0x7f) << shift; b[0] < 0x80 {
			break
		}
	}
	if n > maxFrame {
		return nil, ErrMalformed
	}
	return sr.raw(int(n))
}

func (sr *snapshotReader) checksum() error {
	want := sr.sum.Sum32()
	got, err := sr.raw(4)
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint32(got) != want {
		return errors.New("checksum does not match")
	}
	if _, err := sr.r.ReadByte(); err != io.EOF {
		return errors.New("bytes behind its end")
	}
	return nil
}
