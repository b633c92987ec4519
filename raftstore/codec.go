package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"reflect"
	"time"
	"unsafe"
)

// maxDepth bounds how deeply values may nest, so that no input can exhaust the stack. Docker's types need about ten.
const maxDepth = 64

var errShort = errors.New("ends too early")

// encoder appends values to buf. One encoder serves one transaction or one snapshot: values that repeat in it are
// written once. The objects it is given must stay alive and unchanged until it is done.
type encoder struct {
	buf []byte
	// byMemory finds a shared value by the bytes of its own memory, pointers included: objects are immutable, so
	// equal memory means equal value. It saves encoding what was encoded a moment ago.
	byMemory map[string]uint64
	// byContent finds a shared value by its encoding, for equal values that live in different places.
	byContent map[string]uint64
	shared    uint64
}

// reset makes the encoder ready for the next transaction; buf is kept by whoever took it.
func (e *encoder) reset() {
	e.buf, e.shared = nil, 0
	clear(e.byMemory)
	clear(e.byContent)
}

func (e *encoder) uvarint(n uint64) { e.buf = binary.AppendUvarint(e.buf, n) }
func (e *encoder) varint(n int64)   { e.buf = binary.AppendVarint(e.buf, n) }

func (e *encoder) string(s string) {
	e.uvarint(uint64(len(s)))
	e.buf = append(e.buf, s...)
}

func (e *encoder) time(t time.Time) {
	_, offset := t.Zone()
	e.varint(t.Unix())
	e.uvarint(uint64(t.Nanosecond()))
	e.varint(int64(offset))
}

// decoder reads what an encoder wrote. It trusts nothing: every length is checked against what is left.
type decoder struct {
	data  []byte
	off   int
	depth int
	// shared holds the values of this transaction or snapshot by number.
	shared []reflect.Value
	// pool is kept between transactions and may be nil.
	pool *internPool
}

func (d *decoder) left() int { return len(d.data) - d.off }

func (d *decoder) take(n int) ([]byte, error) {
	if n > d.left() {
		return nil, errShort
	}
	b := d.data[d.off : d.off+n : d.off+n]
	d.off += n
	return b, nil
}

func (d *decoder) byte() (byte, error) {
	if d.left() == 0 {
		return 0, errShort
	}
	b := d.data[d.off]
	d.off++
	return b, nil
}

func (d *decoder) uvarint() (uint64, error) {
	n, size := binary.Uvarint(d.data[d.off:])
	if size <= 0 {
		return 0, errShort
	}
	d.off += size
	return n, nil
}

func (d *decoder) varint() (int64, error) {
	n, size := binary.Varint(d.data[d.off:])
	if size <= 0 {
		return 0, errShort
	}
	d.off += size
	return n, nil
}

// length reads the length of something whose elements take a byte each at least, plus one where nil is distinguished.
func (d *decoder) length() (int, error) {
	n, err := d.uvarint()
	if err == nil && n > uint64(d.left())+1 {
		err = errShort
	}
	return int(n), err
}

func (d *decoder) string() (string, error) {
	n, err := d.length()
	if err != nil {
		return "", err
	}
	b, err := d.take(n)
	if err != nil {
		return "", err
	}
	return d.pool.string(b), nil
}

func (d *decoder) time() (time.Time, error) {
	sec, err := d.varint()
	if err != nil {
		return time.Time{}, err
	}
	nsec, err := d.uvarint()
	if err != nil {
		return time.Time{}, err
	}
	offset, err := d.varint()
	if err != nil {
		return time.Time{}, err
	}
	const day = 24 * 60 * 60
	if nsec >= uint64(time.Second) || offset <= -day || offset >= day {
		return time.Time{}, fmt.Errorf("%d ns at zone %d s is no time", nsec, offset)
	}
	t := time.Unix(sec, int64(nsec)).UTC()
	if offset != 0 {
		t = t.In(time.FixedZone("", int(offset)))
	}
	return t, nil
}

func (d *decoder) enter() error {
	if d.depth++; d.depth > maxDepth {
		return fmt.Errorf("nests deeper than %d", maxDepth)
	}
	return nil
}

func (d *decoder) leave() { d.depth-- }

// sharedPlan writes a value once and refers to it by number afterwards:
//
//	number of a value that came before (from 1), or 0, length of the encoding, encoding
//
// Reading gives equal values one memory: the tasks of a service share what their templates point to.
type sharedPlan struct {
	id   byte
	typ  reflect.Type
	elem plan
}

func (p sharedPlan) encode(e *encoder, v reflect.Value) {
	if e.byMemory == nil {
		e.byMemory, e.byContent = map[string]uint64{}, map[string]uint64{}
	}
	memory := unsafe.Slice((*byte)(v.Addr().UnsafePointer()), p.typ.Size())
	if n, ok := e.byMemory[string(memory)]; ok {
		e.uvarint(n)
		return
	}
	start := len(e.buf)
	p.elem.encode(e, v)
	content := e.buf[start:]
	// Equal encodings of different types never meet: the id is part of the key.
	key := string(p.id) + string(content)
	n, ok := e.byContent[key]
	if ok {
		e.buf = e.buf[:start]
		e.uvarint(n)
	} else {
		e.shared++
		n = e.shared
		e.byContent[key] = n
		e.buf = e.buf[:start]
		e.uvarint(0)
		e.string(key[1:])
	}
	if len(e.byMemory) < maxByMemory {
		e.byMemory[string(memory)] = n
	}
}

// maxByMemory bounds the memory of a snapshot's encoder where values are equal but live in many places.
const maxByMemory = 1 << 16

func (p sharedPlan) decode(d *decoder, v reflect.Value) error {
	n, err := d.uvarint()
	if err != nil {
		return err
	}
	if n > 0 {
		if n > uint64(len(d.shared)) || d.shared[n-1].Type() != p.typ {
			return fmt.Errorf("no shared %s has the number %d", p.typ, n)
		}
		v.Set(d.shared[n-1])
		return nil
	}
	size, err := d.length()
	if err != nil {
		return err
	}
	content, err := d.take(size)
	if err != nil {
		return err
	}
	value, ok := d.pool.value(p.id, content)
	if !ok {
		if err := d.enter(); err != nil {
			return err
		}
		defer d.leave()
		// Shared values hold no shared values themselves, so the inner decoder needs no table.
		inner := decoder{data: content, depth: d.depth, pool: d.pool}
		value = reflect.New(p.typ).Elem()
		if err := p.elem.decode(&inner, value); err != nil {
			return err
		}
		if inner.left() != 0 {
			return fmt.Errorf("shared %s has %d bytes too many", p.typ, inner.left())
		}
		d.pool.keep(p.id, content, value)
	}
	d.shared = append(d.shared, value)
	v.Set(value)
	return nil
}

// internPool lets what is decoded from different transactions share memory: templates of services, and short strings
// such as states and ids. It is bounded and forgets. It is used by one goroutine; a nil pool keeps nothing.
type internPool struct {
	seed    maphash.Seed
	strings [4096]string
	values  map[string]reflect.Value
	bytes   int
}

// The pool's bounds: strings beyond the length of an id and values beyond a megabyte in all are not worth keeping.
const (
	maxPooledString = 32
	maxPooledBytes  = 1 << 20
)

func newInternPool() *internPool {
	return &internPool{seed: maphash.MakeSeed(), values: map[string]reflect.Value{}}
}

func (p *internPool) string(b []byte) string {
	if p == nil || len(b) > maxPooledString || len(b) == 0 {
		return string(b)
	}
	slot := &p.strings[maphash.Bytes(p.seed, b)%uint64(len(p.strings))]
	if *slot != string(b) {
		*slot = string(b)
	}
	return *slot
}

func (p *internPool) value(id byte, content []byte) (reflect.Value, bool) {
	if p == nil {
		return reflect.Value{}, false
	}
	v, ok := p.values[string(id)+string(content)]
	return v, ok
}

func (p *internPool) keep(id byte, content []byte, v reflect.Value) {
	if p == nil || len(content) > maxPooledBytes/16 {
		return
	}
	if p.bytes += len(content); p.bytes > maxPooledBytes {
		clear(p.values)
		p.bytes = len(content)
	}
	p.values[string(id)+string(content)] = v
}
