package raftstore

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// A plan knows how to write and read the values of one type. Plans are compiled once per type from its declaration, so
// that objects need no hand-written code and a field that Docker adds to its types is carried without being forgotten.
//
// The encoding of a value depends on its kind:
//
//	struct        (field number, value) for each field that is not zero, then 0
//	string, bytes length, content
//	int           zig-zag varint; unsigned: varint; bool: 0 or 1; float: 8 bytes
//	pointer       0 for nil, or 1 and the value
//	slice, map    0 for nil, or length+1 and the elements; maps in the order of their keys
//	time          seconds, nanoseconds, zone offset: what RFC 3339 shows, so that digests agree
//	shared        see sharedPlan
//
// Field numbers stand for names by way of [fieldNames]; they are the same for equal names of different types. A name that is
// not in that list is written out: number 1, then the name as a string.
type plan interface {
	// encode appends v, which is addressable.
	encode(e *encoder, v reflect.Value)
	// decode reads into v, which is settable and zero.
	decode(d *decoder, v reflect.Value) error
}

var plans = struct {
	sync.Mutex
	byType map[reflect.Type]plan
}{byType: map[reflect.Type]plan{}}

// planOf gives the plan of a type. It panics for types that have none (interfaces, functions, channels), which is an error
// in the program that TestEveryTypeHasAPlan finds.
func planOf(t reflect.Type) plan {
	plans.Lock()
	defer plans.Unlock()
	return compile(t)
}

var timeType = reflect.TypeFor[time.Time]()

func compile(t reflect.Type) plan {
	if p, ok := plans.byType[t]; ok {
		return p
	}
	// A type that contains itself finds this forwarder instead of recursing forever.
	later := &recursivePlan{}
	plans.byType[t] = later
	p := compileKind(t)
	later.plan = p
	plans.byType[t] = p
	return p
}

func compileKind(t reflect.Type) plan {
	switch t.Kind() {
	case reflect.String:
		return stringPlan{}
	case reflect.Bool:
		return boolPlan{}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return intPlan{}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return uintPlan{}
	case reflect.Float32, reflect.Float64:
		return floatPlan{}
	case reflect.Pointer:
		return pointerPlan{compile(t.Elem())}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return bytesPlan{}
		}
		return slicePlan{compile(t.Elem())}
	case reflect.Map:
		if t.Key().Kind() == reflect.String {
			return mapPlan{t, compile(t.Elem())}
		}
	case reflect.Struct:
		if t == timeType {
			return timePlan{}
		}
		return compileStruct(t)
	}
	panic(fmt.Sprintf("raftstore: type %s cannot be written to the log", t))
}

func compileStruct(t reflect.Type) plan {
	p := &structPlan{name: t.String(), byNumber: make([]int16, len(fieldNames)+firstNumber), byName: map[string]int{}}
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			panic(fmt.Sprintf("raftstore: type %s has the hidden field %s", t, f.Name))
		}
		fp := compile(f.Type)
		if id := sharedField(t, f); id != 0 {
			fp = sharedPlan{id, f.Type, fp}
		}
		n := fieldNumbers[f.Name]
		if n == 0 {
			n = namedField
		} else {
			p.byNumber[n] = int16(len(p.fields) + 1)
		}
		p.byName[f.Name] = len(p.fields)
		p.fields = append(p.fields, structField{i, n, f.Name, fp})
	}
	return p
}

// sharedField says which fields repeat between the objects of one transaction, by a number above 0 for each type of
// value: the template of a service in its tasks, a network in its attachments, the ids that tasks refer to.
func sharedField(t reflect.Type, f reflect.StructField) byte {
	switch t {
	case reflect.TypeFor[swarm.Task]():
		switch f.Name {
		case "Spec":
			return 1
		case "ServiceID", "NodeID":
			return 2
		}
	case reflect.TypeFor[cluster.Task]():
		switch f.Name {
		case "ServiceAnnotations":
			return 3
		case "Endpoint":
			return 4
		case "RegistryAuth":
			return 2
		}
	case reflect.TypeFor[swarm.NetworkAttachment]():
		if f.Name == "Network" {
			return 5
		}
	case reflect.TypeFor[cluster.TaskPatch]():
		if f.Name == "NodeID" {
			return 2
		}
	}
	return 0
}

type recursivePlan struct{ plan }

type structField struct {
	index  int
	number uint64
	name   string
	plan   plan
}

type structPlan struct {
	name   string
	fields []structField
	// byNumber gives the position in fields plus one for a field number, 0 for none.
	byNumber []int16
	byName   map[string]int
}

func (p *structPlan) encode(e *encoder, v reflect.Value) {
	for i := range p.fields {
		f := &p.fields[i]
		if fv := v.Field(f.index); !fv.IsZero() {
			e.uvarint(f.number)
			if f.number == namedField {
				e.string(f.name)
			}
			f.plan.encode(e, fv)
		}
	}
	e.uvarint(0)
}

func (p *structPlan) decode(d *decoder, v reflect.Value) error {
	for {
		n, err := d.uvarint()
		if err != nil || n == 0 {
			return err
		}
		f, err := p.field(d, n)
		if err != nil {
			return err
		}
		if err := f.plan.decode(d, v.Field(f.index)); err != nil {
			return err
		}
	}
}

// field finds the field with that number, or with the name that follows.
func (p *structPlan) field(d *decoder, n uint64) (*structField, error) {
	if n == namedField {
		name, err := d.string()
		if err != nil {
			return nil, err
		}
		if at, ok := p.byName[name]; ok {
			return &p.fields[at], nil
		}
		return nil, fmt.Errorf("%s has no field %q: written by another version of miniswarm", p.name, name)
	}
	if n >= uint64(len(p.byNumber)) {
		return nil, fmt.Errorf("%s: field number %d is unknown: written by a newer version of miniswarm", p.name, n)
	}
	if at := p.byNumber[n]; at > 0 {
		return &p.fields[at-1], nil
	}
	return nil, fmt.Errorf("%s has no field %s: written by another version of miniswarm", p.name, fieldNames[n-firstNumber])
}

type stringPlan struct{}

func (stringPlan) encode(e *encoder, v reflect.Value) { e.string(v.String()) }

func (stringPlan) decode(d *decoder, v reflect.Value) error {
	s, err := d.string()
	if err == nil {
		v.SetString(s)
	}
	return err
}

type boolPlan struct{}

func (boolPlan) encode(e *encoder, v reflect.Value) {
	b := byte(0)
	if v.Bool() {
		b = 1
	}
	e.buf = append(e.buf, b)
}

func (boolPlan) decode(d *decoder, v reflect.Value) error {
	b, err := d.byte()
	if err == nil {
		v.SetBool(b != 0)
	}
	return err
}

type intPlan struct{}

func (intPlan) encode(e *encoder, v reflect.Value) { e.varint(v.Int()) }

func (intPlan) decode(d *decoder, v reflect.Value) error {
	n, err := d.varint()
	if err == nil && v.OverflowInt(n) {
		err = fmt.Errorf("%d does not fit %s", n, v.Type())
	}
	if err == nil {
		v.SetInt(n)
	}
	return err
}

type uintPlan struct{}

func (uintPlan) encode(e *encoder, v reflect.Value) { e.uvarint(v.Uint()) }

func (uintPlan) decode(d *decoder, v reflect.Value) error {
	n, err := d.uvarint()
	if err == nil && v.OverflowUint(n) {
		err = fmt.Errorf("%d does not fit %s", n, v.Type())
	}
	if err == nil {
		v.SetUint(n)
	}
	return err
}

type floatPlan struct{}

func (floatPlan) encode(e *encoder, v reflect.Value) {
	e.buf = binary.LittleEndian.AppendUint64(e.buf, math.Float64bits(v.Float()))
}

func (floatPlan) decode(d *decoder, v reflect.Value) error {
	b, err := d.take(8)
	if err == nil {
		v.SetFloat(math.Float64frombits(binary.LittleEndian.Uint64(b)))
	}
	return err
}

type bytesPlan struct{}

func (bytesPlan) encode(e *encoder, v reflect.Value) {
	if v.IsNil() {
		e.uvarint(0)
		return
	}
	b := v.Bytes()
	e.uvarint(uint64(len(b)) + 1)
	e.buf = append(e.buf, b...)
}

func (bytesPlan) decode(d *decoder, v reflect.Value) error {
	n, err := d.length()
	if err != nil || n == 0 {
		return err
	}
	b, err := d.take(n - 1)
	if err == nil {
		v.SetBytes(append(make([]byte, 0, len(b)), b...))
	}
	return err
}

type pointerPlan struct{ elem plan }

func (p pointerPlan) encode(e *encoder, v reflect.Value) {
	if v.IsNil() {
		e.buf = append(e.buf, 0)
		return
	}
	e.buf = append(e.buf, 1)
	p.elem.encode(e, v.Elem())
}

func (p pointerPlan) decode(d *decoder, v reflect.Value) error {
	b, err := d.byte()
	if err != nil || b == 0 {
		return err
	}
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	n := reflect.New(v.Type().Elem())
	if err := p.elem.decode(d, n.Elem()); err != nil {
		return err
	}
	v.Set(n)
	return nil
}

type slicePlan struct{ elem plan }

func (p slicePlan) encode(e *encoder, v reflect.Value) {
	if v.IsNil() {
		e.uvarint(0)
		return
	}
	n := v.Len()
	e.uvarint(uint64(n) + 1)
	for i := range n {
		p.elem.encode(e, v.Index(i))
	}
}

func (p slicePlan) decode(d *decoder, v reflect.Value) error {
	n, err := d.length()
	if err != nil || n == 0 {
		return err
	}
	n--
	// The length comes from outside: beyond a few elements the slice grows with what is really there.
	s := reflect.MakeSlice(v.Type(), min(n, 16), min(n, 16))
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	for i := range n {
		if i == s.Len() {
			s = reflect.Append(s, reflect.Zero(v.Type().Elem()))
		}
		if err := p.elem.decode(d, s.Index(i)); err != nil {
			return err
		}
	}
	v.Set(s)
	return nil
}

type mapPlan struct {
	typ  reflect.Type
	elem plan
}

func (p mapPlan) encode(e *encoder, v reflect.Value) {
	if v.IsNil() {
		e.uvarint(0)
		return
	}
	keys := make([]string, 0, v.Len())
	for it := v.MapRange(); it.Next(); {
		keys = append(keys, it.Key().String())
	}
	slices.Sort(keys)
	e.uvarint(uint64(len(keys)) + 1)
	elem := reflect.New(p.typ.Elem()).Elem() // map elements are not addressable
	for _, k := range keys {
		e.string(k)
		elem.Set(v.MapIndex(reflect.ValueOf(k).Convert(p.typ.Key())))
		p.elem.encode(e, elem)
	}
}

func (p mapPlan) decode(d *decoder, v reflect.Value) error {
	n, err := d.length()
	if err != nil || n == 0 {
		return err
	}
	m := reflect.MakeMapWithSize(p.typ, min(n-1, 16))
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	for range n - 1 {
		k, err := d.string()
		if err != nil {
			return err
		}
		elem := reflect.New(p.typ.Elem()).Elem()
		if err := p.elem.decode(d, elem); err != nil {
			return err
		}
		m.SetMapIndex(reflect.ValueOf(k).Convert(p.typ.Key()), elem)
	}
	v.Set(m)
	return nil
}

type timePlan struct{}

func (timePlan) encode(e *encoder, v reflect.Value) { e.time(*v.Addr().Interface().(*time.Time)) }

func (timePlan) decode(d *decoder, v reflect.Value) error {
	t, err := d.time()
	if err == nil {
		*v.Addr().Interface().(*time.Time) = t
	}
	return err
}
