package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"isle"
	"isle/internal/initproto"
)

// dialHome connects to home and reads the challenge.
func dialHome() (*initproto.Conn, initproto.Challenge, error) {
	conn, err := net.DialTimeout("tcp", initproto.HomeAddress, patience)
	if err != nil {
		return nil, initproto.Challenge{}, err
	}
	conn.SetDeadline(time.Now().Add(patience))
	c := initproto.NewConn(conn)
	b, err := c.Expect(initproto.FrameChallenge)
	if err != nil {
		c.Close()
		return nil, initproto.Challenge{}, err
	}
	challenge, err := initproto.ParseChallenge(b)
	return c, challenge, err
}

// pose calls home as if it were the isle-init of the launches named.
func pose(args []string) {
	answer := func(c *initproto.Conn) error {
		_, err := c.Expect(initproto.FrameWelcome)
		if errors.Is(err, io.EOF) || err != nil && strings.Contains(err.Error(), "reset") {
			return errors.New("REFUSED")
		}
		return err
	}
	var old []byte
	for _, id := range args {
		launch := isle.ID(id)
		for _, kind := range []initproto.Kind{initproto.KindEvents, initproto.KindWork, initproto.KindWorkload} {
			c, challenge, err := dialHome()
			if err != nil {
				try("dial home", err)
				continue
			}
			secret := make([]byte, initproto.SecretSize)
			rand.Read(secret)
			hello := initproto.NewHello(challenge, kind, launch, secret)
			old = hello.Encode()
			if err = c.WriteFrame(initproto.FrameHello, old); err == nil {
				err = answer(c)
			}
			c.Close()
			try(fmt.Sprintf("a guessed secret as %d of %s", kind, launch), err)
		}
		c, _, err := dialHome()
		if err == nil {
			if err = c.WriteFrame(initproto.FrameHello, old); err == nil {
				err = answer(c)
			}
			c.Close()
		}
		try("a replayed hello of "+id, err)
		c, _, err = dialHome()
		if err == nil {
			h := initproto.Hello{Version: initproto.Version, Kind: initproto.KindWork, Launch: launch}
			if err = c.WriteFrame(initproto.FrameHello, h.Encode()); err == nil {
				err = answer(c)
			}
			c.Close()
		}
		try("a proof of zeros of "+id, err)
	}
	for name, frame := range map[string][]byte{
		"bytes of ff":             []byte(strings.Repeat("\xff", 1<<16)),
		"a frame of 4 GiB":        {0x02, 0xff, 0xff, 0xff, 0xff},
		"a frame that never ends": binary.BigEndian.AppendUint32([]byte{0x02}, initproto.MaxFrame),
		"an event before hello":   append(binary.BigEndian.AppendUint32([]byte{0x10}, 2), "{}"...),
		"a log before hello":      append(binary.BigEndian.AppendUint32([]byte{0x11}, 64), make([]byte, 64)...),
		"an exit before hello":    append(binary.BigEndian.AppendUint32([]byte{0x36}, 2), "{}"...),
		"HTTP":                    []byte("GET / HTTP/1.1\r\nHost: home\r\n\r\n"),
		"an empty hello":          {0x02, 0, 0, 0, 0},
	} {
		c, _, err := dialHome()
		if err == nil {
			c.Conn.Write(frame)
			c.CloseWrite()
			err = answer(c)
			c.Close()
		}
		try(name, err)
	}
}

// flood opens as many connections to an address as it is told, holds them, and
// says how many were open at once; then it does it again without waiting.
func flood(args []string) {
	n, _ := strconv.Atoi(args[1])
	var held []net.Conn
	refused := 0
	for range n {
		c, err := net.DialTimeout("tcp", args[0], patience)
		if err != nil {
			refused++
			continue
		}
		held = append(held, c)
	}
	for _, c := range held {
		c.Close()
	}
	say("connections refused", strconv.Itoa(refused))
	say("connections opened", strconv.Itoa(len(held)))
}
