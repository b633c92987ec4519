package raftstore

import (
	"encoding/binary"
	"fmt"
	"io"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A message on a stream is its length (4 bytes, big endian) and raft's own encoding of it.

// frameWriter writes messages, with a buffer of its own.
type frameWriter struct{ buf []byte }

// keepBuffer is the size beyond which a buffer is not kept for the next message.
const keepBuffer = 4 << 20

func (f *frameWriter) write(w io.Writer, m *raftpb.Message) error {
	buf, err := proto.MarshalOptions{}.MarshalAppend(append(f.buf[:0], 0, 0, 0, 0), m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	binary.BigEndian.PutUint32(buf, uint32(len(buf)-4))
	if cap(buf) <= keepBuffer {
		f.buf = buf
	}
	_, err = w.Write(buf)
	return err
}

// frameReader reads messages, with a buffer of its own.
type frameReader struct{ buf []byte }

// read gives the next message; io.EOF when the stream has ended between messages.
func (f *frameReader) read(r io.Reader) (*raftpb.Message, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(head[:]))
	if size > maxFrame {
		return nil, fmt.Errorf("a message of %d bytes is beyond the limit of %d", size, maxFrame)
	}
	buf := f.buf
	if cap(buf) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if size <= keepBuffer {
		f.buf = buf
	}
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, fmt.Errorf("message of %d bytes: %w", size, err)
	}
	m := &raftpb.Message{}
	if err := proto.Unmarshal(buf, m); err != nil { // copies what it keeps
		return nil, fmt.Errorf("decode message: %w", err)
	}
	return m, nil
}
