package raftstore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/google/go-cmp/cmp"

	"github.com/miniswarm/miniswarm/cluster"
)

// fill gives v a random value: every field now and then zero, empty, nil or full.
func fill(r *rand.Rand, v reflect.Value) {
	if v.Type() == timeType {
		zone := time.UTC
		if r.IntN(2) == 0 {
			zone = time.FixedZone("", (r.IntN(48)-24)*1800)
		}
		v.Set(reflect.ValueOf(time.Unix(r.Int64N(4e9), r.Int64N(1e9)).In(zone)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(strings.Repeat(string(rune('a'+r.IntN(26))), r.IntN(40)))
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(r.Uint64()) >> (64 - v.Type().Bits()) >> r.IntN(v.Type().Bits()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(r.Uint64() >> (64 - v.Type().Bits()) >> r.IntN(v.Type().Bits()))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(r.NormFloat64())
	case reflect.Pointer:
		if r.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem())
		}
	case reflect.Slice:
		if n := r.IntN(4); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n-1, n-1))
			for i := range n - 1 {
				fill(r, v.Index(i))
			}
		}
	case reflect.Map:
		if n := r.IntN(4); n > 0 {
			v.Set(reflect.MakeMap(v.Type()))
			for i := range n - 1 {
				e := reflect.New(v.Type().Elem()).Elem()
				fill(r, e)
				v.SetMapIndex(reflect.ValueOf(fmt.Sprint("k", i)).Convert(v.Type().Key()), e)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if r.IntN(4) > 0 {
				fill(r, v.Field(i))
			}
		}
	default:
		panic(v.Type())
	}
}

func randomTxn(r *rand.Rand) *cluster.Txn {
	txn := &cluster.Txn{Time: time.Unix(r.Int64N(4e9), r.Int64N(1e9)).UTC(), Changes: []cluster.Change{}}
	for range r.IntN(3) {
		txn.Guards = append(txn.Guards, cluster.Guard{Kind: cluster.Kinds()[r.IntN(7)], Index: r.Uint64() >> r.IntN(64)})
	}
	var spec swarm.TaskSpec
	fill(r, reflect.ValueOf(&spec).Elem())
	for range r.IntN(12) {
		kind := cluster.Kinds()[r.IntN(7)]
		o, _ := cluster.NewObject(kind)
		fill(r, reflect.ValueOf(o).Elem())
		if t, ok := o.(*cluster.Task); ok && r.IntN(2) == 0 {
			t.Spec = spec
		}
		c := cluster.Change{Kind: kind, ID: o.ObjectID(), Version: r.Uint64() >> r.IntN(64)}
		if r.IntN(5) == 0 {
			c.ID = "another"
		}
		switch c.Action = cluster.Action(1 + r.IntN(4)); c.Action {
		case cluster.Create, cluster.Update:
			c.Object = o
		case cluster.Patch:
			if r.IntN(2) == 0 {
				c.Task = &cluster.TaskPatch{}
				fill(r, reflect.ValueOf(c.Task).Elem())
			} else {
				c.Node = &cluster.NodePatch{}
				fill(r, reflect.ValueOf(c.Node).Elem())
			}
		}
		txn.Changes = append(txn.Changes, c)
	}
	return txn
}

func TestTransactionsSurviveTheLog(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	pool := newInternPool()
	for i := range 2000 {
		want, id := randomTxn(r), proposalID{r.Uint64(), r.Uint64()}
		data, err := encodeEntry(id, want)
		if err != nil {
			t.Fatalf("seed %d, %d: %v", seed, i, err)
		}
		again, err := encodeEntry(id, want)
		if err != nil || !bytes.Equal(data, again) {
			t.Fatalf("seed %d, %d: the same transaction was encoded in two ways (%v)", seed, i, err)
		}
		gotID, got, err := decodeEntry(data, pool)
		if err != nil {
			t.Fatalf("seed %d, %d: %v", seed, i, err)
		}
		if gotID != id {
			t.Fatalf("seed %d, %d: id is %v, want %v", seed, i, gotID, id)
		}
		if diff := cmp.Diff(got, want, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); diff != "" {
			t.Fatalf("seed %d, %d: got - want +\n%s", seed, i, diff)
		}
		// Digests are made of JSON, which shows zones.
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		if !bytes.Equal(a, b) {
			t.Fatalf("seed %d, %d: JSON differs\n%s\n%s", seed, i, a, b)
		}
	}
}

func TestEveryTypeHasAPlan(t *testing.T) {
	if len(objectPlans()) != len(cluster.Kinds()) || taskPatchPlan() == nil || nodePatchPlan() == nil {
		t.Error("plans are missing") // compiling them panics with the name of the field
	}
	extra := planOf(reflect.TypeFor[struct{ Name, NotInTheList string }]())
	e := &encoder{}
	want := struct{ Name, NotInTheList string }{"a", "b"}
	extra.encode(e, reflect.ValueOf(&want).Elem())
	got := want
	got.Name, got.NotInTheList = "", ""
	if err := extra.decode(&decoder{data: e.buf}, reflect.ValueOf(&got).Elem()); err != nil || got != want {
		t.Errorf("a field without a number: got %v (%v), want %v", got, err, want)
	}
	other := planOf(reflect.TypeFor[struct{ Name string }]())
	if err := other.decode(&decoder{data: e.buf}, reflect.ValueOf(&struct{ Name string }{}).Elem()); err == nil {
		t.Error("a field that the type does not have was passed over")
	}
	if len(fieldNumbers) != len(fieldNames) {
		t.Error("a name stands twice in fieldNames")
	}
	if fieldNames[0] != "Task" || fieldNames[35] != "ID" {
		t.Error("the order of fieldNames was changed: logs written before cannot be read")
	}
}

func TestTasksShareTheirTemplate(t *testing.T) {
	txn := manyTasks(1000, 0)
	data, err := encodeEntry(proposalID{}, txn)
	if err != nil {
		t.Fatal(err)
	}
	if per := len(data) / len(txn.Changes); per > 120 {
		t.Errorf("a small task takes %d bytes in the log, want at most 120", per)
	}
	pool := newInternPool()
	_, first, err := decodeEntry(data, pool)
	if err != nil {
		t.Fatal(err)
	}
	_, second, err := decodeEntry(data, pool)
	if err != nil {
		t.Fatal(err)
	}
	a := first.Changes[0].Object.(*cluster.Task)
	b := first.Changes[999].Object.(*cluster.Task)
	c := second.Changes[5].Object.(*cluster.Task)
	if a.Spec.ContainerSpec != b.Spec.ContainerSpec || a.Endpoint != b.Endpoint {
		t.Error("tasks of one transaction do not share their template")
	}
	if a.Spec.ContainerSpec != c.Spec.ContainerSpec {
		t.Error("tasks of two transactions do not share their template")
	}
}

// manyTasks creates n tasks of one service, as a service of that size would.
func manyTasks(n, from int) *cluster.Txn {
	replicas := uint64(n)
	svc := &cluster.Service{}
	svc.Spec.Name, svc.Spec.Mode.Replicated = "web", &swarm.ReplicatedService{Replicas: &replicas}
	svc.Spec.TaskTemplate = swarm.TaskSpec{
		ContainerSpec: &swarm.ContainerSpec{Image: "registry.example.org/web:1.2.3", Env: []string{"A=1", "B=2"}},
		Resources:     &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 1e8}},
	}
	endpoint := &swarm.Endpoint{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 8080}}}
	txn := &cluster.Txn{Time: time.Unix(1_700_000_000, 0).UTC()}
	ids := cluster.SeededIDs(uint64(from))
	service := ids.Next()
	for i := range n {
		task := &cluster.Task{}
		task.ID, task.ServiceID, task.Slot = ids.Next(), service, from+i+1
		task.Spec, task.Endpoint = svc.Spec.TaskTemplate, endpoint
		task.ServiceAnnotations = svc.Spec.Annotations
		task.Status = swarm.TaskStatus{State: swarm.TaskStateNew, Timestamp: txn.Time, Message: "created"}
		task.DesiredState = swarm.TaskStateRunning
		txn.Changes = append(txn.Changes, cluster.CreateOf(task))
	}
	return txn
}

func TestForeignEntriesAreRefused(t *testing.T) {
	good, err := encodeEntry(proposalID{1, 2}, manyTasks(2, 0))
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Clone(good)
	newer[0] = txnVersion + 1
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"nothing":     {nil, "too short"},
		"newer":       {newer, "upgrade it"},
		"cut off":     {good[:len(good)-1], "too early"},
		"too long":    {append(bytes.Clone(good), 0), "follow"},
		"new action":  {append(bytes.Clone(good[:entryOverhead]), 0, 0, 0, 0, 1, 9, 4, 0), "newer version"},
		"new kind":    {append(bytes.Clone(good[:entryOverhead]), 0, 0, 0, 0, 1, 1, 99, 1), "newer version"},
		"named field": {append(bytes.Clone(good[:entryOverhead]), "\x00\x00\x00\x00\x01\x01\x04\x01\x01\x07Novelty"...), "written by another version"},
		"new field":   {append(bytes.Clone(good[:entryOverhead]), 0, 0, 0, 0, 1, 1, 4, 1, 0xff, 0x7f), "newer version"},
	} {
		if _, _, err := decodeEntry(c.data, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want one with %q", name, err, c.want)
		}
	}
	for _, c := range []cluster.Change{
		{Action: cluster.Create, Kind: cluster.KindTask, ID: "x"},
		{Action: cluster.Create, Kind: cluster.KindTask, ID: "x", Object: (*cluster.Task)(nil)},
		{Action: cluster.Create, Kind: cluster.KindTask, ID: "x", Object: &cluster.Node{}},
		{Action: 77, Kind: cluster.KindTask, ID: "x"},
	} {
		if _, err := encodeEntry(proposalID{}, &cluster.Txn{Changes: []cluster.Change{c}}); err == nil {
			t.Errorf("%+v was encoded", c)
		}
	}
}

func FuzzDecodeEntry(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 10 {
		data, err := encodeEntry(proposalID{1, 2}, randomTxn(r))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		id, txn, err := decodeEntry(data, nil)
		if err != nil {
			return
		}
		again, err := encodeEntry(id, txn)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		if _, _, err := decodeEntry(again, nil); err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v", err)
		}
	})
}

func BenchmarkEncodeTasks(b *testing.B) {
	txn := manyTasks(1000, 0)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := encodeEntry(proposalID{}, txn); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "tasks/s")
}

func BenchmarkDecodeTasks(b *testing.B) {
	data, err := encodeEntry(proposalID{}, manyTasks(1000, 0))
	if err != nil {
		b.Fatal(err)
	}
	pool := newInternPool()
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := decodeEntry(data, pool); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "tasks/s")
}
