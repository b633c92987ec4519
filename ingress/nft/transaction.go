package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// socket is what transactions go through.
type socket interface {
	SendMessages([]netlink.Message) ([]netlink.Message, error)
	Receive() ([]netlink.Message, error)
}

// written returns the messages that f has the library write. The library shows them to a socket only, and one of its own tests at
// that, but among them must be one that it cannot write: two transactions for a table would leave one without its last rule where
// the process ends in between.
func written(f func(*nftables.Conn) error) ([]netlink.Message, error) {
	var batches [][]netlink.Message
	done := netlink.Message{Header: netlink.Header{Type: netlink.Error}, Data: make([]byte, 4)} // an error of number 0
	c, err := nftables.New(nftables.WithTestDial(func(sent []netlink.Message) ([]netlink.Message, error) {
		if sent == nil {
			return []netlink.Message{done}, nil
		}
		batches = append(batches, sent)
		done.Header.Sequence = sent[min(1, len(sent)-1)].Header.Sequence // the kernel says what it answers, and later libraries look
		return nil, nil
	}))
	if err != nil {
		return nil, err
	}
	if err := f(c); err != nil {
		return nil, err
	}
	if err := c.Flush(); err != nil || len(batches) == 0 {
		return nil, err
	}
	batch := batches[0]
	last := len(batch) - 1
	if len(batches) > 1 || batch[0].Header.Type != unix.NFNL_MSG_BATCH_BEGIN || batch[last].Header.Type != unix.NFNL_MSG_BATCH_END {
		return nil, errors.New("the library writes something else than one transaction")
	}
	messages := batch[1:last]
	for i := range messages {
		messages[i].Header.Sequence, messages[i].Header.PID = 0, 0 // the socket they go through has its own
	}
	return messages, nil
}

// transact sends messages as one transaction, of which the kernel does all or nothing. After an error answers to the rest of it may
// still be on their way.
func (t *Table) transact(messages []netlink.Message) error {
	if len(messages) == 0 {
		return nil
	}
	whole := append([]netlink.Message{edge(unix.NFNL_MSG_BATCH_BEGIN)}, messages...)
	if _, err := t.wire.SendMessages(append(whole, edge(unix.NFNL_MSG_BATCH_END))); err != nil {
		return err
	}
	waiting := 0
	for _, m := range messages {
		if m.Header.Flags&netlink.Acknowledge != 0 {
			waiting++
		}
	}
	for waiting > 0 {
		answers, err := t.wire.Receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			if a.Header.Type == netlink.Error { // of number 0, or Receive would have returned it
				waiting--
			}
		}
	}
	return nil
}

// edge begins or ends a transaction.
func edge(kind netlink.HeaderType) netlink.Message {
	return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request},
		Data: binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, unix.NFNL_SUBSYS_NFTABLES)}
}

// send sends what f writes, and what it cannot, as one transaction.
func (t *Table) send(verb string, f func(*nftables.Conn) error, more ...netlink.Message) error {
	messages, err := written(f)
	if err != nil {
		return fmt.Errorf("%s nftables table %s: %w", verb, TableName, err)
	}
	if err := t.transact(append(messages, more...)); err != nil {
		return errors.Join(fmt.Errorf("%s nftables table %s: %w", verb, TableName, explain(err)), t.connect())
	}
	return nil
}
