package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Limits on decoded input, so that garbage cannot ask for much memory. Lengths are
// checked against the bytes that are there before anything is allocated.
const (
	// MaxKey is the longest key, in bytes.
	MaxKey = 4 << 10
	// MaxValue is the largest value, in bytes.
	MaxValue = 32 << 20
)

var (
	// ErrMalformed reports bytes that are no encoding of what was asked for.
	ErrMalformed = errors.New("malformed encoding")
	// ErrVersion reports an encoding of a version that this code does not know.
	ErrVersion = errors.New("unknown encoding version")
)

// The first byte of an encoding is its version. Transactions of version 2, which are
// log entries, end with the CRC-32C of all before it; those of version 1 are still
// read. Results are at version 1.
const (
	resultVersion          = 1
	plainTransaction  byte = 1
	summedTransaction      = 2
)

const (
	flagDelete = 1 << iota
	flagOK
	flagForgotten
	flagProgress
)

// AppendTransaction appends the transaction's encoding to b.
func AppendTransaction(b []byte, tx Transaction) []byte {
	begin := len(b)
	b = append(b, summedTransaction)
	b = append(b, tx.ID[:]...)
	b = binary.AppendVarint(b, int64(tx.Stamp))
	b = binary.AppendUvarint(b, uint64(len(tx.Conditions)))
	for _, c := range tx.Conditions {
		b = appendBytes(b, c.Key)
		b = binary.AppendVarint(b, int64(c.Revision))
	}
	b = binary.AppendUvarint(b, uint64(len(tx.Ops)))
	for _, op := range tx.Ops {
		var flags byte
		if op.Delete {
			flags |= flagDelete
		}
		b = append(b, flags)
		b = appendBytes(b, op.Key)
		if !op.Delete {
			b = appendBytes(b, op.Value)
			b = binary.AppendVarint(b, op.Expires)
		}
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[begin:], castagnoli))
}

// TransactionSize is at least the length of the transaction's encoding.
func TransactionSize(tx Transaction) int {
	n := 1 + len(tx.ID) + 3*binary.MaxVarintLen64 + crc32.Size
	for _, c := range tx.Conditions {
		n += len(c.Key) + 2*binary.MaxVarintLen64
	}
	for _, op := range tx.Ops {
		n += 1 + len(op.Key) + len(op.Value) + 3*binary.MaxVarintLen64
	}
	return n
}

// DecodeTransaction reads an encoded transaction. The result shares nothing with
// b. Errors: ErrMalformed, ErrVersion.
func DecodeTransaction(b []byte) (Transaction, error) {
	d := decoder{b: b}
	switch version := d.byte(); {
	case d.err != nil || version == plainTransaction:
	case version == summedTransaction:
		d.checksum(b)
	default:
		d.fail(fmt.Errorf("%w %d (this peer knows %d)", ErrVersion, version, summedTransaction))
	}
	var tx Transaction
	copy(tx.ID[:], d.take(len(tx.ID)))
	tx.Stamp = Revision(d.varint())
	if n := d.count(2); n > 0 {
		tx.Conditions = make([]Condition, n)
		for i := range tx.Conditions {
			tx.Conditions[i] = Condition{Key: d.key(), Revision: Revision(d.varint())}
		}
	}
	if n := d.count(2); n > 0 {
		tx.Ops = make([]Op, n)
		for i := range tx.Ops {
			op := Op{Delete: d.byte()&flagDelete != 0, Key: d.key()}
			if !op.Delete {
				op.Value, op.Expires = d.value(), d.varint()
			}
			tx.Ops[i] = op
		}
	}
	return tx, d.finish("transaction")
}

// AppendResult appends the result's encoding to b.
func AppendResult(b []byte, r Result) []byte {
	var flags byte
	if r.OK {
		flags |= flagOK
	}
	if r.Forgotten {
		flags |= flagForgotten
	}
	b = append(b, resultVersion, flags)
	b = binary.AppendVarint(b, int64(r.Revision))
	b = binary.AppendUvarint(b, uint64(len(r.Revisions)))
	for _, rev := range r.Revisions {
		b = binary.AppendVarint(b, int64(rev))
	}
	b = binary.AppendUvarint(b, uint64(len(r.Failed)))
	for _, kv := range r.Failed {
		b = AppendKV(b, kv)
	}
	return b
}

// DecodeResult reads an encoded result. Errors: ErrMalformed, ErrVersion.
func DecodeResult(b []byte) (Result, error) {
	d := decoder{b: b}
	d.version(resultVersion)
	flags := d.byte()
	r := Result{OK: flags&flagOK != 0, Forgotten: flags&flagForgotten != 0}
	r.Revision = Revision(d.varint())
	if n := d.count(1); n > 0 {
		r.Revisions = make([]Revision, n)
		for i := range r.Revisions {
			r.Revisions[i] = Revision(d.varint())
		}
	}
	if n := d.count(5); n > 0 {
		r.Failed = make([]KV, n)
		for i := range r.Failed {
			r.Failed[i] = d.kv()
		}
	}
	return r, d.finish("result")
}

// AppendKV appends the version's encoding to b.
func AppendKV(b []byte, kv KV) []byte {
	b = appendBytes(b, kv.Key)
	b = appendBytes(b, kv.Value)
	b = binary.AppendVarint(b, int64(kv.Create))
	b = binary.AppendVarint(b, int64(kv.Mod))
	return binary.AppendVarint(b, kv.Expires)
}

// AppendKVs appends a sequence of versions to b.
func AppendKVs(b []byte, kvs []KV) []byte {
	b = binary.AppendUvarint(b, uint64(len(kvs)))
	for _, kv := range kvs {
		b = AppendKV(b, kv)
	}
	return b
}

// DecodeKVs reads what AppendKVs wrote. Error: ErrMalformed.
func DecodeKVs(b []byte) ([]KV, error) {
	d := decoder{b: b}
	kvs := make([]KV, d.count(5))
	for i := range kvs {
		kvs[i] = d.kv()
	}
	return kvs, d.finish("versions")
}

// AppendEvents appends a batch of events to b.
func AppendEvents(b []byte, events []Event) []byte {
	b = binary.AppendUvarint(b, uint64(len(events)))
	for _, ev := range events {
		var flags byte
		if ev.Delete {
			flags |= flagDelete
		}
		if ev.Progress {
			flags |= flagProgress
		}
		b = append(b, flags)
		b = binary.AppendVarint(b, int64(ev.Revision))
		if ev.Progress {
			continue
		}
		b = appendBytes(b, ev.Key)
		if !ev.Delete {
			b = appendBytes(b, ev.Value)
		}
		b = binary.AppendVarint(b, int64(ev.Create))
		if b = binary.AppendVarint(b, int64(ev.PrevMod)); ev.PrevMod != 0 {
			b = appendBytes(b, ev.Prev)
		}
	}
	return b
}

// DecodeEvents reads what AppendEvents wrote. Error: ErrMalformed.
func DecodeEvents(b []byte) ([]Event, error) {
	d := decoder{b: b}
	events := make([]Event, d.count(2))
	for i := range events {
		flags := d.byte()
		ev := Event{Delete: flags&flagDelete != 0, Progress: flags&flagProgress != 0}
		if ev.Revision = Revision(d.varint()); !ev.Progress {
			ev.Key = d.key()
			if !ev.Delete {
				ev.Value = d.value()
			}
			ev.Create = Revision(d.varint())
			if ev.PrevMod = Revision(d.varint()); ev.PrevMod != 0 {
				ev.Prev = d.value()
			}
		}
		events[i] = ev
	}
	return events, d.finish("events")
}

func appendBytes[T string | []byte](b []byte, v T) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

// decoder reads an encoding. The first fault sticks: after it every read gives
// zero, so that callers check once, in finish.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.b = nil
}

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.fail(ErrMalformed)
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) byte() byte {
	if v := d.take(1); v != nil {
		return v[0]
	}
	return 0
}

// checksum compares the CRC-32C at the end of the encoding with the rest of it, and
// takes it off.
func (d *decoder) checksum(whole []byte) {
	end := len(whole) - crc32.Size
	if end < 1 {
		d.fail(ErrMalformed)
		return
	}
	if crc32.Checksum(whole[:end], castagnoli) != binary.BigEndian.Uint32(whole[end:]) {
		d.fail(fmt.Errorf("%w: the checksum does not match", ErrMalformed))
		return
	}
	d.b = whole[1:end]
}

func (d *decoder) version(want byte) {
	if got := d.byte(); d.err == nil && got != want {
		d.fail(fmt.Errorf("%w %d (this peer knows %d)", ErrVersion, got, want))
	}
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail(ErrMalformed)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail(ErrMalformed)
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads the number of elements that follow; each takes at least size bytes.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.fail(ErrMalformed)
		return 0
	}
	return int(n)
}

func (d *decoder) bytes(limit int) []byte {
	n := d.uvarint()
	if n > uint64(limit) {
		d.fail(ErrMalformed)
		return nil
	}
	return d.take(int(n))
}

func (d *decoder) key() string { return string(d.bytes(MaxKey)) }

func (d *decoder) value() []byte { return append([]byte{}, d.bytes(MaxValue)...) }

func (d *decoder) kv() KV {
	return KV{
		Key: d.key(), Value: d.value(),
		Create: Revision(d.varint()), Mod: Revision(d.varint()), Expires: d.varint(),
	}
}

func (d *decoder) finish(what string) error {
	if d.err == nil && len(d.b) > 0 {
		d.err = ErrMalformed
	}
	if d.err != nil {
		return fmt.Errorf("decode %s: %w", what, d.err)
	}
	return nil
}
